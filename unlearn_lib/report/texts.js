"use strict";
// The browser of texts: choose model and seed, set of prompts, and method; rows follow. Each block
// brings its texts as JSON. All of it is put in as text, never as HTML.
(() => {
  const fill = (select, options) => {
    const kept = select.selectedOptions[0]?.text;
    select.replaceChildren(...options.map((text) => new Option(text)));
    select.selectedIndex = Math.max(0, options.indexOf(kept));
    select.parentElement.hidden = options.length < 2;
  };

  const choice = (place, name, changed) => {
    const label = document.createElement("label");
    const select = document.createElement("select");
    select.addEventListener("change", changed);
    label.append(`${name} `, select);
    place.append(label, " ");
    return select;
  };

  const row = (cells, tag) => {
    const line = document.createElement("tr");
    for (const text of cells) {
      const cell = document.createElement(tag);
      cell.textContent = text;
      if (tag === "th") cell.scope = "col";
      line.append(cell);
    }
    return line;
  };

  const show = (table, variant, set, after) => {
    table.caption.textContent = `${variant.label}: ${set.name}`;
    table.tHead.replaceChildren(row(["prompt", set.first, after.label], "th"));
    table.tBodies[0].replaceChildren(
      ...set.prompts.map((prompt, i) => row([prompt, set.before[i], after.texts[i]], "td")),
    );
  };

  const open = (block) => {
    const variants = JSON.parse(block.querySelector(".texts-data").textContent);
    const place = block.querySelector(".texts-controls");
    const table = block.querySelector(".texts-table");
    const draw = () => {
      const { sets } = variants[models.selectedIndex];
      fill(prompts, sets.map((set) => set.name));
      const set = sets[prompts.selectedIndex];
      fill(methods, set.after.map((after) => after.label));
      show(table, variants[models.selectedIndex], set, set.after[methods.selectedIndex]);
    };
    const models = choice(place, "model", draw);
    const prompts = choice(place, "prompts", draw);
    const methods = choice(place, "after", draw);
    fill(models, variants.map((variant) => variant.label));
    draw();
  };

  document.querySelectorAll("section.texts").forEach(open);
})();
