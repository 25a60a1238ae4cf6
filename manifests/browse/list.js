// The list: a page of rows as tiles, and the values that rows can be chosen by.
import { $, ask, badge, COUNT, filter, make, number, order, state, written } from "./common.js";
import { drawRanges } from "./ranges.js";

/** Fires `shown` after each change of the rows. */
export const list = new EventTarget();

function remember() {
  const { where, values, ranges, open, by, descending, start } = state;
  const address = "#" + encodeURIComponent(JSON.stringify({ where, values, ranges, open, by, descending, start }));
  if (address !== location.hash) history.replaceState(null, "", address);
}

let latest = 0;
let counted = false;

/** Load the page of rows, and with `facets` the counts of values. Answers that were overtaken are dropped. */
export async function load({ facets = true } = {}) {
  const mine = ++latest;
  if (facets) {
    counted = false;
    state.reviews = state.facts.reviews.version;
  }
  remember();
  $("#results").setAttribute("aria-busy", "true");
  $("#where-error").textContent = $("#problem").textContent = "";
  try {
    const body = { filter: filter(), order: order(), start: state.start, count: COUNT, reviews: state.reviews };
    const found = await ask("page", body);
    if (mine !== latest) return;
    if (state.start > 0 && state.start >= found.total) {
      state.start = Math.max(0, Math.ceil(found.total / COUNT) - 1) * COUNT;
      return load({ facets });
    }
    Object.assign(state, { rows: found.rows, total: found.total, command: found.command, condition: found.where });
    showRows();
    if (!counted) {
      // also after a load that was overtaken before it had counted
      const found = await count();
      if (mine !== latest) return;
      show(found);
      counted = true;
    }
  } catch (error) {
    if (mine === latest) $(state.where ? "#where-error" : "#problem").textContent = error.message;
  } finally {
    if (mine === latest) $("#results").setAttribute("aria-busy", "false");
  }
}

const count = () => Promise.all([
  ask("facets", filter()),
  ask("distributions", { filter: filter(), columns: state.open }),
]);

function show([facets, distributions]) {
  showFacets(facets);
  drawRanges(distributions, {
    choose(column, low, high) {
      const ranges = { ...state.ranges, [column]: { low, high } };
      if (low === null && high === null) delete ranges[column];
      Object.assign(state, { ranges, start: 0 });
      load();
    },
    open(columns) {
      const ranges = Object.fromEntries(Object.entries(state.ranges).filter(([column]) => columns.includes(column)));
      const fewer = Object.keys(ranges).length < Object.keys(state.ranges).length;
      Object.assign(state, { ranges, open: columns, start: fewer ? 0 : state.start });
      load();
    },
  });
}

/** Count the values again: reviews have changed. The rows stay, so that the next page has the rows after them. */
export async function recount() {
  const mine = latest;
  const found = await count();
  if (mine === latest) show(found);
}

function showRows() {
  const { rows, total, start } = state;
  const last = start + rows.length;
  $("#range").textContent = total === 0 ? "No rows" : `${number(start + 1)}–${number(last)} of ${number(total)} rows`;
  $("#tiles").replaceChildren(...rows.map(tile));
  const pages = Math.max(1, Math.ceil(total / COUNT));
  $("#page").value = start / COUNT + 1;
  $("#page").max = pages;
  $("#of").textContent = number(pages);
  $("#first").disabled = $("#before").disabled = start === 0;
  $("#next").disabled = last >= total;
  $("#pages").hidden = pages === 1;
  $("#save-slice").disabled = total === 0;
  list.dispatchEvent(new Event("shown"));
}

/** One row as a tile. */
function tile(row) {
  const name = row.uri.split("/").pop();
  const picture = make("button", { type: "button", className: "open", title: row.uri });
  picture.setAttribute("aria-label", `Show ${name}`);
  picture.append(row.status === "failed" ? none(row.error) : image(row));
  picture.dataset.position = row.position;
  const pick = make("input", { type: "checkbox", checked: state.selected.has(row.sample_id) });
  pick.setAttribute("aria-label", `Select ${name}`);
  const element = make("article", { className: "tile" }, picture, make("label", { className: "pick" }, pick), badge(row));
  element.dataset.id = row.sample_id;
  element.classList.toggle("selected", pick.checked);
  pick.addEventListener("change", () => {
    pick.checked ? state.selected.set(row.sample_id, row.position) : state.selected.delete(row.sample_id);
    list.dispatchEvent(new Event("shown"));
  });
  const size = row.width && row.height ? `${row.width} × ${row.height}` : "";
  const verdict = make("span", { className: row.status }, row.reason ? `${row.status}: ${row.reason}` : row.status);
  verdict.title = verdict.textContent;
  const value = state.by ? make("b", {}, `${state.by} ${written(row.value)}`) : null;
  const text = make("div", { className: "text" }, value, verdict,
    make("span", { title: row.uri }, name),
    size && make("span", { className: "soft" }, size),
    row.caption && make("span", { className: "soft", title: row.caption }, row.caption));
  element.append(text);
  return element;
}

const none = (text) => make("div", { className: "none" }, make("span", {}, text || "no image"));

function image(row) {
  const found = make("img", { loading: "lazy", decoding: "async", alt: "" });
  found.addEventListener("error", async () => {
    let text = "no image";
    try {
      await ask(`thumbnail/${row.position}`);
    } catch (error) {
      text = error.message;
    }
    found.replaceWith(none(text));
  });
  found.src = `thumbnail/${row.position}`;
  return found;
}

function showFacets(facets) {
  const meanings = Object.fromEntries(state.facts.columns.map((column) => [column.name, column.meaning]));
  $("#facets").replaceChildren(...facets.map((facet) => {
    const chosen = state.values[facet.column] ?? [];
    const lines = facet.values.map(({ value, rows }) => {
      const box = make("input", { type: "checkbox", checked: chosen.includes(value) });
      box.addEventListener("change", () => choose(facet.column, value, box.checked));
      const text = value === null ? make("em", {}, "none") : String(value) || make("em", {}, "empty");
      return make("label", { title: String(value ?? "none") }, box, make("span", {}, text), make("b", {}, number(rows)));
    });
    const others = facet.others ? make("p", {}, `${number(facet.others)} with other values`) : null;
    const legend = make("legend", { title: meanings[facet.column] }, facet.column);
    const field = make("fieldset", {}, legend, ...lines, others);
    field.dataset.column = facet.column;
    return field;
  }));
}

function choose(column, value, chosen) {
  const left = (state.values[column] ?? []).filter((one) => one !== value);
  const values = { ...state.values, [column]: chosen ? [...left, value] : left };
  if (values[column].length === 0) delete values[column];
  Object.assign(state, { values, start: 0 });
  load();
}

export function go(start) {
  const last = Math.max(0, Math.ceil(state.total / COUNT) - 1) * COUNT;
  state.start = Math.min(Math.max(0, start), last);
  scrollTo({ top: 0 });
  return load({ facets: false });
}
