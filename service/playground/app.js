/** The playground: joins the views, and scores again whenever pictures, labels, model or prompts change. */

import { Api, Refusal } from "./api.js";
import { Bars } from "./bars.js";
import { announce, find, percent, plural } from "./dom.js";
import { Gallery, tellOf } from "./gallery.js";
import { showHeatMap } from "./heat_map.js";
import { Labels } from "./labels.js";
import { Pictures } from "./pictures.js";
import { Prompts } from "./prompts.js";
import { asCurl, asPython, copy } from "./snippets.js";

const atOnce = 32; // embeddings in one request
const startingSeconds = 1.5; // between two looks at a server that loads its models
const writers = { curl: asCurl, python: asPython };

class Playground {
  #api = new Api((isWrong) => askKey(isWrong));
  #pictures = new Pictures(this.#api, () => this.#update());
  #labels = new Labels(() => this.#update());
  #prompts = new Prompts(() => this.#update());
  #bars = new Bars();
  #model = find("model");
  #models = new Map();
  #gallery;
  #selected = null;
  #scores = new Map(); // picture → predictions
  #asked = ""; // the options that the scores answer, or will
  #request = null; // while they are being asked for
  #problem = null;
  #note = "";
  #frame = null;
  #language = "curl";

  constructor() {
    this.#gallery = new Gallery(this.#pictures, {
      add: (files, options) => this.#add(files, options),
      select: (picture) => this.#choose(picture),
      remove: (picture) => this.#remove(picture),
      clear: () => this.#clear(),
      suggest: (labels) => this.#labels.all.length === 0 && this.#labels.add(labels),
    });
    this.#model.addEventListener("change", () => this.#update());
    find("retry").addEventListener("click", () => this.#retry());
    for (const button of document.querySelectorAll("[data-language]")) {
      button.addEventListener("click", () => this.#copy(button));
    }
  }

  async start() {
    try {
      const [models, sets] = await Promise.all([this.#api.models(), this.#api.templateSets()]);
      this.#models = new Map(models.models.filter(({ loaded }) => loaded).map((model) => [model.name, model]));
      this.#model.replaceChildren(...[...this.#models.keys()].map((name) => new Option(name)));
      this.#model.value = models.default;
      this.#prompts.offer(sets);
      this.#problem = this.#isStarted ? null : "The server is still loading its model.";
      if (!this.#isStarted) setTimeout(() => this.start(), 1000 * startingSeconds);
    } catch (error) {
      this.#problem = messageOf(error);
    }
    this.#update();
  }

  get #isStarted() {
    return this.#model.value !== "";
  }

  #add(files, options) {
    const outcome = this.#pictures.add(files, options);
    this.#selected = outcome.added[0] ?? this.#selected;
    tellOf(outcome);
    this.#update();
  }

  #choose(picture) {
    this.#selected = picture;
    this.#show();
    this.#announceBest();
  }

  #remove(picture) {
    const place = this.#pictures.all.indexOf(picture);
    this.#pictures.remove(picture);
    this.#scores.delete(picture);
    if (picture === this.#selected) this.#selected = this.#pictures.all[Math.max(0, place - 1)] ?? null;
    announce(`${picture.name} removed`);
    this.#update();
  }

  #clear() {
    this.#pictures.clear();
    this.#scores.clear(); // or their files would stay in memory
    this.#selected = null;
    announce("All pictures removed");
    this.#update();
  }

  #retry() {
    this.#problem = null;
    this.#asked = "";
    this.#pictures.forgive();
    if (this.#isStarted) this.#update();
    else this.start();
  }

  #update() {
    if (this.#isStarted) {
      this.#pictures.encode(this.#model.value);
      this.#score();
    }
    this.#show();
  }

  /** Scores every picture that has an embedding; none is encoded for it. New options overtake old ones. */
  async #score() {
    const options = { labels: this.#labels.all, model: this.#model.value, ...this.#prompts.options };
    const asked = JSON.stringify(options);
    const isNew = asked !== this.#asked;
    if (!isNew && this.#request) return; // what runs already takes new pictures along
    this.#request?.abort();
    const request = (this.#request = new AbortController());
    const scores = isNew ? new Map() : this.#scores;
    this.#asked = asked;
    this.#problem = null;
    try {
      for (let some = this.#unscored(scores); some.length > 0; some = this.#unscored(scores)) {
        await this.#classify(some, options, scores, request.signal);
        this.#scores = scores;
        this.#show();
      }
      this.#scores = scores;
      this.#announceBest();
    } catch (error) {
      if (request.signal.aborted) return;
      this.#problem = messageOf(error);
      this.#scores = new Map();
    }
    this.#request = null;
    this.#show();
  }

  #unscored(scores) {
    return this.#labels.all.length > 0 ? this.#ready.filter((one) => !scores.has(one)).slice(0, atOnce) : [];
  }

  async #classify(pictures, options, scores, signal) {
    const began = performance.now();
    const embeddings = pictures.map(({ embeddings }) => embeddings.get(options.model));
    const { results, activation } = await this.#api.classify(embeddings, options, signal);
    results.forEach(({ predictions }, place) => scores.set(pictures[place], predictions));
    const time = `${Math.max(1, Math.round(performance.now() - began))} ms`;
    this.#note = `${activation} over ${plural(options.labels.length, "label")}, ${time}`;
  }

  get #ready() {
    return this.#pictures.all.filter(({ embeddings }) => embeddings.get(this.#model.value));
  }

  #announceBest() {
    const best = this.#scores.get(this.#selected)?.[0];
    if (best) announce(`${this.#selected.name}: ${best.label}, ${percent(best.score)}`);
  }

  /** Once a frame, however many pictures come back from the server in between. */
  #show() {
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = null;
      this.#paint();
    });
  }

  #paint() {
    const predictions = this.#scores.get(this.#selected) ?? [];
    this.#gallery.show(this.#selected, this.#model.value);
    this.#prompts.show(predictions[0]?.label ?? this.#labels.all[0]);
    this.#bars.show(predictions);
    this.#showState(predictions.length > 0);
    this.#showCode();
    const { runtime, provider, runtime_precision: precision } = this.#models.get(this.#model.value) ?? {};
    find("model-note").textContent = [runtime, provider, precision].filter(Boolean).join(", ");
    if (!this.#request && !this.#pictures.isBusy) this.#showHeatMap();
  }

  /** Only between requests: it is the one thing here that takes long to draw. */
  #showHeatMap() {
    const rows = this.#ready
      .filter((picture) => this.#scores.has(picture))
      .map((picture) => ({ picture, predictions: this.#scores.get(picture) }));
    showHeatMap(rows, this.#labels.all, { selected: this.#selected, choose: (picture) => this.#choose(picture) });
  }

  /** Scores, a problem, or what is missing: one of them is always there to see. */
  #showState(hasScores) {
    const ofPicture = this.#selected?.problems.get(this.#model.value);
    const problem = this.#problem ?? ofPicture;
    const isBusy = !problem && !hasScores && this.#selected !== null && this.#labels.all.length > 0;
    find("problem").hidden = !problem;
    if (problem) find("problem-text").textContent = sentence(problem);
    find("empty").hidden = hasScores || Boolean(problem);
    find("empty").classList.toggle("busy", isBusy);
    find("result").ariaBusy = String(isBusy);
    find("empty-text").textContent = isBusy ? "Looking at the picture…" : this.#missing;
    find("result-note").textContent = hasScores && !problem ? this.#note : "";
  }

  get #missing() {
    const isMissing = [this.#selected ? "" : "a picture", this.#labels.all.length > 0 ? "" : "a few labels"];
    return `Add ${isMissing.filter(Boolean).join(" and ")} to see what fits.`;
  }

  #showCode() {
    const picture = this.#selected;
    find("code").hidden = !picture || picture.problems.has(this.#model.value) || this.#labels.all.length === 0;
    if (!find("code").hidden) find("snippet").textContent = this.#snippet(this.#language);
  }

  #snippet(language) {
    const { template_set: templateSet, templates } = this.#prompts.options;
    return writers[language]({
      picture: this.#selected,
      labels: this.#labels.all,
      model: this.#model.value,
      templateSet,
      templates,
      needsKey: this.#api.usesKey,
    });
  }

  async #copy(button) {
    this.#language = button.dataset.language;
    this.#showCode();
    await copy(this.#snippet(this.#language));
    const words = button.textContent;
    button.textContent = "Copied";
    button.disabled = true;
    announce("Copied");
    setTimeout(() => {
      button.textContent = words;
      button.disabled = false;
    }, 1200);
  }
}

/** Shows the field for the key; resolves when the user has filled it in. */
function askKey(isWrong) {
  const form = find("key-form");
  form.hidden = false;
  if (isWrong) find("key-hint").textContent = "The server does not know that key.";
  find("key").focus();
  return new Promise((resolve) => {
    form.addEventListener(
      "submit",
      (event) => {
        event.preventDefault();
        form.hidden = true;
        resolve(find("key").value.trim());
        find("key").value = "";
      },
      { once: true },
    );
  });
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1);

const messageOf = (error) => (error instanceof Refusal ? error.message : `The page failed: ${error.message}`);

new Playground().start();
