// Sorting, filtering and opening what a link points into. Without it, all is still to be read.
"use strict";

const EMPTY = null;

function number(text) {
  const found = /^[-−+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?/i.exec(text.trim());
  return found ? Number(found[0].replace(/,/g, "").replace("−", "-")) : NaN;
}

function keyOf(row, column) {
  const cell = row.cells[column];
  const text = (cell.dataset.order ?? cell.textContent).trim();
  return text === "" ? EMPTY : text;
}

// Numbers by their size where most cells begin with one, else words; what is neither stays last.
function comparison(rows, column, sign) {
  const keys = new Map(rows.map((row) => [row, keyOf(row, column)]));
  const known = [...keys.values()].filter((key) => key !== EMPTY);
  const numbers = known.map(number).filter((key) => !Number.isNaN(key));
  const numeric = 2 * numbers.length > known.length;
  const absent = (key) => key === EMPTY || (numeric && Number.isNaN(number(key)));
  return (one, other) => {
    const [a, b] = [keys.get(one), keys.get(other)];
    if (absent(a) || absent(b)) return absent(a) - absent(b);
    return sign * (numeric ? number(a) - number(b) : a.localeCompare(b, "en", { numeric: true }));
  };
}

const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

function sortable(table) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const order = NEXT[head.getAttribute("aria-sort")];
      heads.forEach((each) => each.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", order);
      const rows = [...original];
      if (order !== "none") rows.sort(comparison(rows, column, order === "ascending" ? 1 : -1));
      body.append(...rows);
    });
  });
}

function filterable(form) {
  const rows = [...document.getElementById(form.dataset.for).tBodies[0].rows];
  const output = form.querySelector("output");
  const update = () => {
    const words = form.elements.words.value.toLowerCase();
    const chosen = [...form.querySelectorAll("select")].filter((each) => each.value);
    for (const row of rows) {
      const fits = chosen.every((each) => row.dataset[each.name] === each.value);
      row.hidden = !(fits && row.textContent.toLowerCase().includes(words));
    }
    output.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} shown`;
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  update();
}

function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  let closed = false;
  for (let each = target; each; each = each.parentElement) {
    if (each.tagName === "DETAILS" && !each.open) closed = each.open = true;
  }
  if (closed) target.scrollIntoView();
}

document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("form.filters").forEach(filterable);
addEventListener("hashchange", openTarget);
openTarget();
