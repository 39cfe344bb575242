/** What the views share: finding, making and describing things. */

export const find = (id) => document.getElementById(id);

/** An element with properties (or attributes, where there is no such property) and children. */
export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Tells those who listen to the page rather than look at it. */
export function announce(text) {
  find("status").textContent = text;
}

const nearOne = 0.9995;

/** A score as people read it. What is not quite all or nothing is not shown as if it were. */
export function percent(score) {
  if (score > nearOne && score < 1) return "> 99.9 %";
  if (score > 0 && score < 0.001) return "< 0.1 %";
  return `${(100 * score).toFixed(1)} %`;
}

/** The same, short enough for a cell. */
export function shortPercent(score) {
  return score > 0 && score < 0.01 ? "< 1" : (100 * score).toFixed(0);
}

export const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
