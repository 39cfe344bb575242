/** The choice of templates, and the prompts that labels become with it. */

import { announce, find, make, plural } from "./dom.js";

const own = ""; // no template set is called so
const placeholder = "{label}";

export class Prompts {
  #sets = [];
  #select = find("template-set");
  #own = find("templates");

  constructor(changed) {
    this.#own.value = "a photo of a {label}.";
    this.#select.addEventListener("change", () => {
      if (this.#isOwn) {
        find("prompts").open = true;
        announce("Write your own templates below");
      }
      changed();
    });
    this.#own.addEventListener("input", changed);
  }

  /** As `GET /template-sets` answers. */
  offer({ default: usual, template_sets: sets }) {
    this.#sets = sets;
    this.#select.replaceChildren(
      ...sets.map(({ name, templates }) => new Option(`${name} (${templates.length})`, name)),
      new Option("your own…", own),
    );
    this.#select.value = usual;
  }

  /** The part of a request to `POST /classify` that says which templates. */
  get options() {
    return this.#isOwn ? { templates: this.#templates } : { template_set: this.#select.value };
  }

  /** The prompts of one label, which stands for all. */
  show(label = "…") {
    const templates = this.#templates;
    const chosen = this.#sets.find(({ name }) => name === this.#select.value);
    this.#own.hidden = !this.#isOwn;
    find("prompts-summary").textContent = `${plural(templates.length, "prompt")} per label`;
    const average = templates.length > 1 ? "The label stands for their average." : "";
    find("prompts-about").textContent = this.#isOwn
      ? `One template a line, each with ${placeholder} in it. ${average}`
      : `${chosen?.description ?? ""} ${average}`;
    find("prompts-list").replaceChildren(...templates.map((template) => make("li", {}, ...filled(template, label))));
  }

  get #isOwn() {
    return this.#select.value === own;
  }

  get #templates() {
    if (!this.#isOwn) return this.#sets.find(({ name }) => name === this.#select.value)?.templates ?? [];
    return this.#own.value.split("\n").map((line) => line.trim()).filter(Boolean);
  }
}

/** The template with the label set off, wherever it stands. */
function filled(template, label) {
  const parts = template.split(placeholder);
  return parts.flatMap((part, place) => (place === 0 ? [part] : [make("b", { textContent: label }), part]));
}
