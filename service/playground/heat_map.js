/** Several pictures × labels as a table, the darker the likelier. */

import { find, make, plural, shortPercent } from "./dom.js";

const mostLabels = 40;

/** `rows` are pictures with their predictions; `choose(picture)` selects one. */
export function showHeatMap(rows, labels, { selected, choose }) {
  find("grid").hidden = rows.length < 2;
  if (rows.length < 2) return;
  const scores = rows.map(({ predictions }) => new Map(predictions.map((one) => [one.label, one.score])));
  const shown = likeliest(labels.filter((label) => scores[0].has(label)), scores);
  const all = plural(labels.length, "label");
  const columns = shown.length < labels.length ? `the ${shown.length} likeliest of ${all}` : all;
  find("grid-note").textContent = `${plural(rows.length, "picture")} × ${columns}, scores in %`;
  const table = find("heat-map");
  const hadFocus = table.contains(document.activeElement);
  table.replaceChildren(
    make("thead", {}, make("tr", {}, make("td", {}), ...shown.map(columnHead))),
    make(
      "tbody",
      {},
      ...rows.map(({ picture, predictions }, place) =>
        make(
          "tr",
          { className: picture === selected ? "selected" : "" },
          rowHead(picture, choose),
          ...shown.map((label) => cell(scores[place].get(label), label === predictions[0].label)),
        ),
      ),
    ),
  );
  if (hadFocus) table.querySelector(".selected button")?.focus();
}

/** In the order that the user gave them. */
function likeliest(labels, scores) {
  if (labels.length <= mostLabels) return labels;
  const best = new Map(labels.map((label) => [label, Math.max(...scores.map((row) => row.get(label) ?? 0))]));
  const kept = new Set([...labels].sort((a, b) => best.get(b) - best.get(a)).slice(0, mostLabels));
  return labels.filter((label) => kept.has(label));
}

const columnHead = (label) => make("th", { scope: "col" }, make("span", { textContent: label, title: label }));

function rowHead(picture, choose) {
  const button = make(
    "button",
    { type: "button", title: picture.name },
    make("img", { src: picture.address, alt: "", loading: "lazy" }),
    make("span", { textContent: picture.name }),
  );
  button.addEventListener("click", () => choose(picture));
  return make("th", { scope: "row" }, button);
}

function cell(score = 0, isBest = false) {
  // From `hot` on, text in the other colour stands out more.
  const warmth = score > 0.8 ? "hot" : score > 0.02 || isBest ? "warm" : "";
  const node = make("td", { textContent: shortPercent(score), className: warmth });
  node.classList.toggle("best", isBest);
  node.style.setProperty("--score", score);
  return node;
}
