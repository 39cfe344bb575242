/** Where pictures come in and are looked at: dropped, pasted, chosen, or a sample of the server's own. */

import { addressOf } from "./api.js";
import { announce, find, make, plural } from "./dom.js";

const samples = [
  "red-circle.png",
  "blue-star.jpg",
  "green-triangle.webp",
  "yellow-heart.png",
  "purple-arrow.jpg",
  "white-crescent.jpg",
];
const wordsOf = (name) => name.split(".")[0].replace("-", " ");

export class Gallery {
  #pictures;
  #select;
  #remove;
  #items = new Map(); // picture → its thumbnail
  #adder = make("li", {}, addButton());

  /** `add(files, {source})`, `select(picture)`, `remove(picture)` are what the user may do. */
  constructor(pictures, { add, select, remove, clear, suggest }) {
    this.#pictures = pictures;
    this.#select = select;
    this.#remove = remove;
    find("clear").addEventListener("click", clear);
    find("stage-picture").addEventListener("error", () => find("stage").classList.add("blank"));
    chooseFiles(add);
    dropFiles(add);
    pasteFiles(add);
    find("samples").replaceChildren(...samples.map((name) => sampleButton(name, add, suggest)));
  }

  /** `model` decides which of the embeddings and problems are looked at. */
  show(selected, model) {
    const all = this.#pictures.all;
    find("welcome").hidden = all.length > 0;
    find("stage").hidden = find("thumbnails").hidden = find("clear").hidden = all.length === 0;
    if (selected) showOnStage(selected);
    this.#keepThumbnails(all);
    for (const [picture, item] of this.#items) describe(item.firstChild, picture, { isSelected: picture === selected, model });
  }

  /** Thumbnails stay the same elements: a hundred pictures would be decoded over and over. */
  #keepThumbnails(all) {
    const isSame = all.length === this.#items.size && all.every((picture) => this.#items.has(picture));
    if (isSame) return;
    const list = find("thumbnails");
    const hadFocus = list.contains(document.activeElement);
    this.#items = new Map(all.map((picture) => [picture, this.#items.get(picture) ?? this.#thumbnail(picture)]));
    list.replaceChildren(...this.#items.values(), this.#adder);
    if (hadFocus) (list.querySelector("button") ?? find("choose")).focus();
  }

  #thumbnail(picture) {
    const show = make(
      "button",
      { type: "button", className: "thumbnail" },
      make("img", { src: picture.address, alt: "", loading: "lazy" }),
    );
    show.addEventListener("click", () => this.#select(picture));
    show.addEventListener("keydown", (event) => {
      if (event.key === "Delete" || event.key === "Backspace") this.#remove(picture);
    });
    const remove = make("button", {
      type: "button",
      className: "remove",
      "aria-label": `Remove ${picture.name}`,
      textContent: "×",
    });
    remove.addEventListener("click", () => this.#remove(picture));
    return make("li", {}, show, remove);
  }
}

function describe(button, picture, { isSelected, model }) {
  const problem = picture.problems.get(model);
  const isBusy = !problem && !picture.embeddings.get(model);
  const state = problem ? ", not readable" : isBusy ? ", being encoded" : "";
  button.classList.toggle("broken", Boolean(problem));
  button.classList.toggle("busy", isBusy);
  button.title = problem ?? picture.name;
  button.ariaLabel = `${picture.name}${state}`;
  button.ariaPressed = String(isSelected);
}

function showOnStage(picture) {
  const image = find("stage-picture");
  if (image.src !== picture.address) {
    image.src = picture.address;
    find("stage").classList.remove("blank");
  }
  image.alt = picture.name;
  find("stage-caption").textContent = picture.name;
}

function addButton() {
  const button = make("button", {
    type: "button",
    className: "thumbnail add",
    "aria-label": "Add pictures",
    textContent: "+",
  });
  button.addEventListener("click", () => find("files").click());
  return button;
}

function chooseFiles(add) {
  find("choose").addEventListener("click", () => find("files").click());
  find("files").addEventListener("change", ({ target }) => {
    add([...target.files]);
    target.value = ""; // the same file may be chosen again
  });
}

const hasFiles = (event) => event.dataTransfer?.types.includes("Files");

function dropFiles(add) {
  let depth = 0; // entering a child comes before leaving its parent
  const veil = (change) => {
    depth = change === 0 ? 0 : depth + change;
    find("veil").hidden = depth <= 0;
  };
  addEventListener("dragenter", (event) => hasFiles(event) && veil(1));
  addEventListener("dragleave", (event) => hasFiles(event) && veil(-1));
  addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    veil(0);
    add([...event.dataTransfer.files]);
  });
}

function pasteFiles(add) {
  addEventListener("paste", (event) => {
    if (event.clipboardData.files.length === 0) return;
    event.preventDefault();
    add([...event.clipboardData.files]);
  });
}

function sampleButton(name, add, suggest) {
  const source = addressOf(`playground/samples/${name}`);
  const button = make(
    "button",
    { type: "button", className: "thumbnail", "aria-label": `Try the sample ${wordsOf(name)}`, title: wordsOf(name) },
    make("img", { src: source, alt: "" }),
  );
  button.addEventListener("click", async () => {
    suggest(samples.slice(0, 4).map(wordsOf));
    // Without the file the next request fails as well, and says why.
    const content = await fetch(source).then((response) => response.blob()).catch(() => new Blob());
    add([new File([content], name)], { source });
  });
  return make("li", {}, button);
}

/** What became of files that were added. */
export function tellOf({ added, left, most }) {
  announce(left > 0 ? `${plural(added.length, "picture")} added; ${most} is the most` : `${plural(added.length, "picture")} added`);
}
