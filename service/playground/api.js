/** The server's endpoints. Addresses are relative to the page, so any path prefix of a proxy will do. */

const storedKey = "clipserve-key";
const patience = 3; // times that a busy server is asked again

/** A request that failed; the message is meant for people. */
export class Refusal extends Error {}

export const addressOf = (path) => new URL(path, document.baseURI).href;

export class Api {
  #key = sessionStorage.getItem(storedKey) ?? "";
  #askKey;
  #asked = null;

  /** `askKey(isWrong)` resolves to the key that the user gives. */
  constructor(askKey) {
    this.#askKey = askKey;
  }

  get usesKey() {
    return this.#key !== "";
  }

  models() {
    return this.#ask("models");
  }

  templateSets() {
    return this.#ask("template-sets");
  }

  /** A picture's embedding, in base64: what `classify` takes. */
  async embed(file, model) {
    const body = new FormData();
    body.append("image", file, file.name);
    body.append("model", model);
    body.append("encoding", "base64");
    const answer = await this.#ask("embed", { method: "POST", body });
    return answer.embeddings[0].embedding;
  }

  /** `options` go into the body as they are; the answer's results are in the order of the embeddings. */
  classify(embeddings, options, signal) {
    return this.#ask("classify", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...options, images: embeddings.map((embedding) => ({ embedding })) }),
      signal,
    });
  }

  async #ask(path, options = {}) {
    for (let tries = 1; ; tries += 1) {
      const key = this.#key;
      const response = await this.#fetch(path, options, key);
      if (response.ok) return response.json();
      if (response.status === 401) {
        await this.#newKey(key);
      } else if (tries <= patience && response.headers.has("Retry-After")) {
        await pause(Number(response.headers.get("Retry-After")));
      } else {
        throw new Refusal(await explain(response));
      }
    }
  }

  async #fetch(path, options, key) {
    const headers = key ? { ...options.headers, Authorization: `Bearer ${key}` } : options.headers;
    try {
      return await fetch(addressOf(path), { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refusal("The server cannot be reached.");
    }
  }

  /** Requests that were refused together ask the user once. */
  async #newKey(refused) {
    if (refused !== this.#key) return;
    this.#asked ??= this.#askKey(refused !== "");
    this.#key = await this.#asked;
    this.#asked = null;
    sessionStorage.setItem(storedKey, this.#key);
  }
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * Math.min(seconds || 1, 10)));

async function explain(response) {
  try {
    return (await response.json()).detail;
  } catch {
    return `The server answered with status ${response.status}.`; // a proxy's page, say
  }
}
