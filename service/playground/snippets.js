/** What the page shows, as a command or a program that does the same. Keys never go into it. */

import { addressOf } from "./api.js";

const shellQuoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const keyVariable = "CLIPSERVE_KEY";

/** curl. Labels go through --form-string: -F would read a leading @ or < as the name of a file. */
export function asCurl({ picture, labels, model, templateSet, templates, needsKey }) {
  const file = picture.name.replaceAll("\\", "\\\\").replaceAll('"', '\\"');
  const text = (name, value) => `--form-string ${shellQuoted(`${name}=${value}`)}`;
  const lines = [
    `curl -s ${shellQuoted(addressOf("classify"))}`,
    ...(needsKey ? [`-H "Authorization: Bearer $${keyVariable}"`] : []),
    `-F ${shellQuoted(`image=@"${file}"`)}`,
    ...labels.map((label) => text("labels", label)),
    ...(templates ? templates.map((one) => text("templates", one)) : [text("template_set", templateSet)]),
    text("model", model),
  ];
  const fetched = picture.source ? `curl -sO ${shellQuoted(picture.source)}\n` : "";
  return fetched + lines.join(" \\\n  ");
}

/** Python with httpx. */
export function asPython({ picture, labels, model, templateSet, templates, needsKey }) {
  const quoted = JSON.stringify; // a string of JSON is a string of Python, too
  const list = (values) => `[${values.map((one) => quoted(one)).join(", ")}]`;
  const fields = [
    `"labels": ${list(labels)}`,
    templates ? `"templates": ${list(templates)}` : `"template_set": ${quoted(templateSet)}`,
    `"model": ${quoted(model)}`,
  ];
  const lines = [
    ...(needsKey ? ["import os", ""] : []),
    "import httpx",
    "",
    picture.source
      ? `picture = httpx.get(${quoted(picture.source)}).content`
      : `picture = open(${quoted(picture.name)}, "rb").read()`,
    "answer = httpx.post(",
    `    ${quoted(addressOf("classify"))},`,
    `    files={"image": picture},`,
    `    data={`,
    ...fields.map((field) => `        ${field},`),
    `    },`,
    ...(needsKey ? [`    headers={"Authorization": f"Bearer {os.environ['${keyVariable}']}"},`] : []),
    "    timeout=30,",
    ")",
    "answer.raise_for_status()",
    `for prediction in answer.json()["results"][0]["predictions"]:`,
    `    print(f"{prediction['score']:.3f}", prediction["label"])`,
  ];
  return lines.join("\n");
}

/** Copies text; browsers keep their clipboard from pages without TLS, which are copied from as of old. */
export async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = document.createElement("textarea");
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
