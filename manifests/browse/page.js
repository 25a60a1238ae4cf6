// The page: its inputs, and what happens when it is opened.
import { $, ask, COUNT, make, number, start, state } from "./common.js";
import { go, load } from "./list.js";
import { openRecord } from "./record.js";
import { setUpReviews } from "./review.js";

function recall() {
  try {
    const found = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    for (const key of ["where", "values", "ranges", "by", "descending", "start"]) {
      if (typeof found[key] === typeof state[key]) state[key] = found[key];
    }
    if (Array.isArray(found.open)) state.open = found.open;
  } catch {
    // an address without a filter, or with one that was cut
  }
}

function applyText() {
  Object.assign(state, { where: $("#where").value.trim(), start: 0 });
  load();
}

function listen() {
  $("#query").addEventListener("submit", (event) => {
    event.preventDefault();
    applyText();
  });
  $("#where").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      applyText();
    }
  });
  $("#reset").addEventListener("click", () => {
    Object.assign(state, start());
    fill();
    load();
  });
  $("#sort").addEventListener("change", () => {
    Object.assign(state, { by: $("#sort").value, start: 0 });
    fill();
    load({ facets: false });
  });
  $("#direction").addEventListener("change", () => {
    Object.assign(state, { descending: $("#direction").value === "down", start: 0 });
    load({ facets: false });
  });
  $("#first").addEventListener("click", () => go(0));
  $("#before").addEventListener("click", () => go(state.start - COUNT));
  $("#next").addEventListener("click", () => go(state.start + COUNT));
  $("#page").addEventListener("change", () => go((Math.trunc($("#page").value) - 1 || 0) * COUNT));
  $("#tiles").addEventListener("click", (event) => {
    const button = event.target.closest("button.open");
    if (button) openRecord(Number(button.dataset.position));
  });
  $("#show-filters").addEventListener("click", () => {
    const shown = $("#show-filters").getAttribute("aria-expanded") !== "true";
    $("#show-filters").setAttribute("aria-expanded", shown);
  });
}

function fill() {
  $("#where").value = state.where;
  $("#sort").value = state.by;
  $("#direction").value = state.descending ? "down" : "up";
  $("#direction").disabled = !state.by;
}

function showFacts(facts) {
  state.facts = facts;
  state.open ??= facts.ranges;
  const { counts } = facts;
  document.title = `${facts.name}: ${number(counts.rows)} rows`;
  $("#name").textContent = facts.name;
  $("#origin").textContent = `${facts.operation} · ${facts.path} · ${facts.id.slice(0, 16)}`;
  $("#counts").replaceChildren(`${number(counts.rows)} rows: `, ...["kept", "rejected", "failed"].flatMap((status, i) =>
    [i ? ", " : "", make("b", { className: status }, `${number(counts[status])} ${status}`)]));
  $("#sort").replaceChildren(make("option", { value: "" }, "uri (as stored)"),
    ...facts.sortable.map((name) => make("option", { value: name }, name)));
  $("#columns").replaceChildren(...facts.columns.map((column) => {
    const insert = make("button", { type: "button", title: column.meaning }, column.name, " ",
      make("small", {}, [column.type, column.unit].filter((text) => text && text !== "1").join(", ")));
    insert.addEventListener("click", () => {
      const box = $("#where");
      box.setRangeText(/^[a-z_]\w*$/i.test(column.name) ? column.name : `"${column.name.replaceAll('"', '""')}"`,
        box.selectionStart, box.selectionEnd, "end");
      box.focus();
    });
    return make("li", {}, insert);
  }));
}

try {
  recall();
  showFacts(await ask("facts"));
  fill();
  listen();
  setUpReviews();
  await load();
} catch (error) {
  $("#problem").textContent = error.message;
}
