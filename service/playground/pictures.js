/** The pictures of the page. Each is encoded once a model; its embeddings stay here, its file in the browser. */

import { Refusal } from "./api.js";

const atOnce = 4; // requests under way
const most = 100;

export class Pictures {
  #all = [];
  #api;
  #changed;
  #running = 0;
  #waiting = [];

  /** `changed()` is called whenever a picture comes, goes, or is encoded. */
  constructor(api, changed) {
    this.#api = api;
    this.#changed = changed;
  }

  get all() {
    return this.#all;
  }

  get isBusy() {
    return this.#running > 0;
  }

  /** Adds files and returns what became of them; `source` is where the server itself has the file. */
  add(files, { source = null } = {}) {
    const added = [...files].slice(0, most - this.#all.length).map((file) => ({
      file,
      source,
      name: file.name || "picture.png",
      address: URL.createObjectURL(file),
      embeddings: new Map(), // by model; null while one is being made
      problems: new Map(),
    }));
    this.#all = [...this.#all, ...added];
    return { added, left: files.length - added.length, most };
  }

  remove(picture) {
    URL.revokeObjectURL(picture.address);
    this.#all = this.#all.filter((one) => one !== picture);
  }

  clear() {
    for (const picture of this.#all) this.remove(picture);
  }

  /** Sees to it that every picture has an embedding of `model`, or a problem with it, sooner or later. */
  encode(model) {
    this.#waiting = this.#all
      .filter((one) => !one.embeddings.has(model) && !one.problems.has(model))
      .map((one) => ({ picture: one, model }));
    this.#next();
  }

  /** Gives pictures that could not be encoded another chance. */
  forgive() {
    for (const picture of this.#all) picture.problems.clear();
  }

  #next() {
    while (this.#running < atOnce && this.#waiting.length > 0) {
      this.#running += 1;
      this.#encode(this.#waiting.shift()).finally(() => {
        this.#running -= 1;
        this.#next();
        this.#changed();
      });
    }
  }

  async #encode({ picture, model }) {
    if (!this.#all.includes(picture) || picture.embeddings.has(model)) return;
    picture.embeddings.set(model, null);
    try {
      picture.embeddings.set(model, await this.#api.embed(picture.file, model));
    } catch (error) {
      picture.embeddings.delete(model);
      picture.problems.set(model, error instanceof Refusal ? error.message : "The picture cannot be read.");
    }
  }
}
