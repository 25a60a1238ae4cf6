// Decisions by hand, and what is saved: the filter as a slice, the reviews as a manifest.
import { $, ask, badge, filter, make, number, state } from "./common.js";
import { list, recount } from "./list.js";

/** Review the rows at some positions; throws an Error with the server's text. */
export async function decide(positions, changes) {
  const body = { positions, name: $("#reviewer").value, reason: $("#reason").value, ...changes };
  const found = await ask("review", body);
  for (const row of state.rows) Object.assign(row, found.samples[row.sample_id] ?? {});
  for (const tile of document.querySelectorAll(".tile")) {
    const row = state.rows.find((one) => one.sample_id === tile.dataset.id);
    if (row && found.samples[row.sample_id]) $(".badge", tile).replaceWith(badge(row));
  }
  showReviews(found.reviews);
  await recount();
}

function showReviews(reviews) {
  const { count, tags, file } = (state.facts.reviews = reviews);
  $("#reviews").textContent = count ? `${number(count)} ${count === 1 ? "review" : "reviews"}, kept in ${file}` :
    "No reviews yet: select images, then accept, reject or tag them.";
  $("#save-reviews").disabled = count === 0;
  $("#tags").replaceChildren(...tags.map((tag) => make("option", { value: tag })));
}

function updateSelection() {
  const count = state.selected.size;
  $("#review").hidden = count === 0;
  $("#selected").textContent = `${number(count)} selected`;
  for (const tile of document.querySelectorAll(".tile")) {
    const chosen = state.selected.has(tile.dataset.id);
    tile.classList.toggle("selected", chosen);
    $("input", tile).checked = chosen;
  }
  const all = state.rows.length > 0 && state.rows.every((row) => state.selected.has(row.sample_id));
  $("#select-page").textContent = all ? "Unselect page" : "Select page";
}

async function act(changes) {
  $("#review-error").textContent = "";
  try {
    await decide([...state.selected.values()], changes);
  } catch (error) {
    $("#review-error").textContent = error.message;
  }
}

/** Ask for a name, and have the server write a manifest. */
function save({ title, what, path, body, name }) {
  const dialog = $("#save");
  const [form, error] = [$("form", dialog), $(".error", dialog)];
  $("h2", dialog).textContent = title;
  $(".what", dialog).textContent = what;
  $(".where", dialog).textContent = `It is written to ${state.facts.into}.`;
  error.textContent = "";
  $("#save-name").value = name;
  const write = $("button[type=submit]", dialog);
  write.hidden = false;
  form.onsubmit = async (event) => {
    event.preventDefault();
    if (write.disabled) return;
    write.disabled = true;
    write.textContent = "Writing …";
    error.textContent = "";
    try {
      const made = await ask(path, { ...body(), name: $("#save-name").value });
      $(".what", dialog).textContent = `Written: ${number(made.counts.rows)} rows, id ${made.id.slice(0, 16)}.`;
      $(".where", dialog).textContent = made.path;
      write.hidden = true;
    } catch (problem) {
      error.textContent = problem.message;
    }
    write.disabled = false;
    write.textContent = "Write";
  };
  dialog.showModal();
  $("#save-name").select();
}

export function setUpReviews() {
  $("#reviewer").value = state.facts.user;
  showReviews(state.facts.reviews);
  for (const button of document.querySelectorAll("#review [data-verdict]")) {
    button.addEventListener("click", () => act({ verdict: button.dataset.verdict }));
  }
  const change = (list) => {
    const tag = $("#tag").value.trim();
    if (tag) act({ [list]: [tag] });
  };
  $("#review").addEventListener("submit", (event) => {
    event.preventDefault();
    change("add_tags");
  });
  $("#remove-tag").addEventListener("click", () => change("remove_tags"));
  list.addEventListener("shown", updateSelection);
  $("#unselect").addEventListener("click", () => {
    state.selected.clear();
    updateSelection();
  });
  $("#select-page").addEventListener("click", () => {
    const all = state.rows.every((row) => state.selected.has(row.sample_id));
    for (const row of state.rows) {
      all ? state.selected.delete(row.sample_id) : state.selected.set(row.sample_id, row.position);
    }
    updateSelection();
  });
  $("#save-slice").addEventListener("click", () => save({
    title: "Save as slice",
    what: `${number(state.total)} rows: ${state.condition ?? "all rows"}. ` + (state.command === null ?
      "It uses reviews that are not saved: save the reviews as a manifest first, and slice that one." :
      `The same on the command line: ${state.command}`),
    path: "slice",
    body: () => ({ filter: filter() }),
    name: `${state.facts.name}-slice`,
  }));
  $("#save-reviews").addEventListener("click", () => save({
    title: "Save reviews as manifest",
    what: "All rows, with the columns review, review_tags, review_by, review_time and review_reason.",
    path: "reviews",
    body: () => ({}),
    name: `${state.facts.name}-reviewed`,
  }));
  $("#save [data-close]").addEventListener("click", () => $("#save").close());
}
