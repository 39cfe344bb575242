/** Labels as chips: type or paste to add; click, Delete or Backspace to remove; arrows to move. */

import { announce, find, make, plural } from "./dom.js";

const separators = /[,\n\t]/;

export class Labels {
  #labels = [];
  #changed;
  #input = find("label");
  #list = find("chips");

  constructor(changed) {
    this.#changed = changed;
    find("label-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#take(this.#input.value);
    });
    find("label-form").addEventListener("click", (event) => {
      if (event.target === event.currentTarget) this.#input.focus();
    });
    find("clear-labels").addEventListener("click", () => this.#set([], "All labels removed"));
    this.#input.addEventListener("change", () => this.#take(this.#input.value));
    this.#input.addEventListener("input", () => {
      if (separators.test(this.#input.value)) this.#take(this.#input.value);
    });
    this.#input.addEventListener("paste", (event) => this.#paste(event));
    this.#input.addEventListener("keydown", (event) => this.#keyInInput(event));
    this.#list.addEventListener("keydown", (event) => this.#keyInChips(event));
    this.#list.addEventListener("click", (event) => {
      const chip = event.target.closest("button");
      if (chip) this.#remove(this.#chips().indexOf(chip));
    });
  }

  get all() {
    return this.#labels;
  }

  /** Adds what is new among them. */
  add(labels) {
    const fresh = [...new Set(labels.map((label) => label.trim()).filter(Boolean))].filter(
      (label) => !this.#labels.includes(label),
    );
    if (fresh.length > 0) this.#set([...this.#labels, ...fresh], `${plural(fresh.length, "label")} added`);
  }

  #take(text) {
    this.#input.value = "";
    this.add(text.split(separators));
  }

  /** A field of one line would run pasted lines together. */
  #paste(event) {
    const text = event.clipboardData.getData("text");
    if (!separators.test(text)) return;
    event.preventDefault();
    this.#take(this.#input.value + text);
  }

  #keyInInput(event) {
    const isAtStart = this.#input.selectionStart === 0 && this.#input.selectionEnd === 0;
    if (!isAtStart || this.#labels.length === 0) return;
    if (event.key === "ArrowLeft" || event.key === "Backspace") {
      event.preventDefault();
      this.#focus(this.#labels.length - 1);
    }
  }

  #keyInChips(event) {
    const place = this.#chips().indexOf(event.target);
    if (event.key === "ArrowLeft") this.#focus(Math.max(0, place - 1));
    else if (event.key === "ArrowRight") this.#focus(place + 1);
    else if (event.key === "Delete" || event.key === "Backspace") this.#remove(place);
    else return;
    event.preventDefault();
  }

  #remove(place) {
    const label = this.#labels[place];
    this.#set(this.#labels.toSpliced(place, 1), `${label} removed`);
    this.#focus(Math.min(place, this.#labels.length - 1));
  }

  #set(labels, news) {
    this.#labels = labels;
    this.#list.replaceChildren(...labels.map((label, place) => chip(label, place === labels.length - 1)));
    find("clear-labels").hidden = labels.length === 0;
    announce(news);
    this.#changed();
  }

  #chips() {
    return [...this.#list.querySelectorAll("button")];
  }

  /** All chips are one stop of the Tab key; beyond the last one lies the input. */
  #focus(place) {
    const chips = this.#chips();
    const target = chips[place];
    if (!target) {
      this.#input.focus();
      return;
    }
    for (const one of chips) one.tabIndex = one === target ? 0 : -1;
    target.focus();
  }
}

const chip = (label, isTabStop) =>
  make(
    "li",
    {},
    make(
      "button",
      { type: "button", className: "chip", tabIndex: isTabStop ? 0 : -1, "aria-label": `Remove ${label}` },
      make("span", { textContent: label }),
      make("span", { className: "cross", textContent: "×" }),
    ),
  );
