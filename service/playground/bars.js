/** The selected picture's scores as bars, best first. Rows stay the same elements, so that they can move. */

import { find, make, percent, plural } from "./dom.js";

const atFirst = 12;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class Bars {
  #list = find("bars");
  #more = find("more");
  #rows = new Map();
  #showsAll = false;
  #predictions = [];

  constructor() {
    this.#more.addEventListener("click", () => {
      this.#showsAll = !this.#showsAll;
      this.show(this.#predictions);
    });
  }

  show(predictions) {
    this.#predictions = predictions;
    const shown = this.#showsAll ? predictions : predictions.slice(0, atFirst);
    const before = new Map([...this.#rows].map(([label, row]) => [label, row.offsetTop]));
    this.#rows = new Map(shown.map((one) => [one.label, this.#rows.get(one.label) ?? newRow(one.label)]));
    this.#list.replaceChildren(...this.#rows.values());
    shown.forEach((one, place) => fill(this.#rows.get(one.label), one, place === 0));
    this.#list.hidden = shown.length === 0;
    this.#more.hidden = predictions.length <= atFirst;
    this.#more.textContent = this.#showsAll ? "Show fewer" : `Show all ${plural(predictions.length, "label")}`;
    if (!calm.matches) this.#glide(before);
  }

  /** Lets each row start where it was. */
  #glide(before) {
    for (const [label, row] of this.#rows) {
      const distance = (before.get(label) ?? row.offsetTop) - row.offsetTop;
      if (distance !== 0) {
        row.animate([{ transform: `translateY(${distance}px)` }, { transform: "none" }], {
          duration: 260,
          easing: "cubic-bezier(.2, .7, .2, 1)",
        });
      }
    }
  }
}

const newRow = (label) =>
  make(
    "li",
    {},
    make("span", { className: "bar-label", textContent: label }),
    make("span", { className: "bar-similarity" }),
    make("span", { className: "bar-score" }),
    make("span", { className: "bar", "aria-hidden": "true" }, make("span", {})),
  );

function fill(row, { score, similarity }, isBest) {
  row.classList.toggle("best", isBest);
  row.querySelector(".bar-score").textContent = percent(score);
  row.querySelector(".bar-similarity").textContent = `cosine ${similarity.toFixed(2).replace("-", "−")}`;
  row.querySelector(".bar > span").style.width = `${100 * score}%`;
}
