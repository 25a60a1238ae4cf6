// What all modules of the page share: elements, requests, and the state of the list.

export const $ = (selector, inside = document) => inside.querySelector(selector);

/** Make an element. What comes from the manifest is text, never HTML. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

/** Ask the server; throws an Error with its text. */
export async function ask(path, body) {
  const options = body === undefined ? {} :
    { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the browser's server has ended: start `uhr manifest browse` again");
  }
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error);
  return found;
}

export const number = (value) => value.toLocaleString("en-US");

export function written(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "number") {
    if (Number.isInteger(value)) return number(value);
    return Math.abs(value) >= 1e6 || Math.abs(value) < 1e-3 ? value.toExponential(2) : String(+value.toPrecision(4));
  }
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}

export const COUNT = 60;
/** A list without filter. */
export const start = () => ({ where: "", values: {}, ranges: {}, by: "", descending: true, start: 0 });
/** `open`: the columns whose ranges are shown; `reviews`: the version of the reviews that the list is of. */
export const state = { ...start(), open: null, reviews: 0, facts: null, rows: [], total: 0, selected: new Map() };

/** The filter as the server takes it. The facet `status` is one of its values. */
export const filter = () => ({ status: "any", where: state.where, values: state.values, ranges: state.ranges });
export const order = () => ({ by: state.by || null, descending: state.descending });

/** The review of a row, as it is shown on its image. */
export function badge(row) {
  const texts = [row.review, ...(row.review_tags ?? [])].filter(Boolean);
  const found = make("span", { className: `badge ${row.review ?? ""}`, hidden: texts.length === 0 }, texts.join(", "));
  if (row.review === "rejected") found.className = "badge failed";
  return found;
}
