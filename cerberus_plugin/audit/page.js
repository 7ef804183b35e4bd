"use strict";
(() => {
  const read = id => JSON.parse(document.getElementById(id).textContent);
  const pictures = read("pictures"), earlier = read("earlier"), columns = read("columns");
  const articles = [...document.querySelectorAll("article")];
  const byId = id => document.getElementById(id);
  const place = `cerberus-audit-${document.body.dataset.audit}`;
  const message = byId("message");
  let decided = {};  // by key of a finding: the number of the choice, or -1 if it is rejected
  try {
    decided = JSON.parse(localStorage.getItem(place)) || {};
  } catch (error) {
    message.textContent = "This browser cannot store your choices. Export them before you close the page.";
  }

  for (const image of document.querySelectorAll("img[data-picture]")) image.src = pictures[image.dataset.picture];

  const state = article => {
    const choice = decided[article.dataset.key];
    return choice === undefined ? "undecided" : choice < 0 ? "rejected" : "accepted";
  };

  function keep() {
    try {
      localStorage.setItem(place, JSON.stringify(decided));
    } catch (error) {
      message.textContent = "This browser cannot store your choices. Export them before you close the page.";
    }
  }

  function draw(article) {
    const now = state(article), choice = decided[article.dataset.key];
    article.classList.toggle("accepted", now === "accepted");
    article.classList.toggle("rejected", now === "rejected");
    article.querySelector(".accept").setAttribute("aria-pressed", now === "accepted");
    article.querySelector(".reject").setAttribute("aria-pressed", now === "rejected");
    if (now === "accepted") article.querySelector(".to").value = choice;
  }

  function count() {
    const states = articles.map(state);
    const accepted = states.filter(each => each === "accepted").length;
    const done = states.filter(each => each !== "undecided").length;
    byId("progress").value = done;
    byId("count").textContent = `${done} of ${articles.length} decided, ${accepted} accepted`;
    byId("export").disabled = !accepted && !earlier.length;
  }

  function decide(article, choice) {
    if (choice === null) delete decided[article.dataset.key];
    else decided[article.dataset.key] = choice;
    keep();
    draw(article);
    count();
  }

  function filter() {
    const kind = byId("kind").value, attribute = byId("attribute").value, show = byId("show").value;
    for (const article of articles) {
      article.hidden = (kind && article.dataset.kind !== kind) || (attribute && article.dataset.attribute !== attribute)
        || (show && state(article) !== show);
    }
  }

  let current = null;
  function select(article) {
    if (current) current.classList.remove("current");
    current = article;
    article.classList.add("current");
    article.scrollIntoView({block: "nearest"});
  }

  function step(by) {
    const shown = articles.filter(article => !article.hidden);
    if (!shown.length) return;
    const at = shown.indexOf(current);
    select(shown[at < 0 ? 0 : Math.min(Math.max(at + by, 0), shown.length - 1)]);
  }

  const chosen = article => Number(article.querySelector(".to").value);
  for (const article of articles) {
    draw(article);
    article.querySelector(".accept").addEventListener("click", () => {
      decide(article, state(article) === "accepted" ? null : chosen(article));
      select(article);
    });
    article.querySelector(".reject").addEventListener("click", () => {
      decide(article, state(article) === "rejected" ? null : -1);
      select(article);
    });
    article.querySelector(".to").addEventListener("change", () => {
      if (state(article) === "accepted") decide(article, chosen(article));
    });
    article.addEventListener("click", event => {
      if (!event.target.closest("button, select, label")) select(article);
    });
  }
  for (const id of ["kind", "attribute", "show"]) byId(id).addEventListener("change", filter);
  byId("bar").addEventListener("submit", event => event.preventDefault());

  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, input, textarea")) return;
    const move = {j: 1, k: -1}[event.key];
    if (move) step(move);
    else if ("aru".includes(event.key) && event.key.length === 1) {
      if (!current) step(0);
      if (!current) return;
      decide(current, event.key === "a" ? chosen(current) : event.key === "r" ? -1 : null);
      if (event.key !== "u") step(1);
    } else return;
    event.preventDefault();
  });

  const cell = text => /[",;\t\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;

  function rows() {
    const kept = new Map();
    let passed = 0;
    const key = row => JSON.stringify([row[0], row[1], row[2], row[3].toLowerCase(), row[5].toLowerCase()]);
    for (const row of earlier) kept.set(key(row), row);
    const before = kept.size;
    for (const article of articles) {  // highest confidence first
      if (state(article) !== "accepted") continue;
      const own = JSON.parse(article.dataset.choices)[decided[article.dataset.key]] || [];
      for (const row of own) {
        const other = kept.get(key(row));
        if (!other) kept.set(key(row), row);
        else if (other[4] !== row[4]) passed += 1;
      }
    }
    return {rows: [...kept.values()], passed, before};
  }

  byId("export").addEventListener("click", () => {
    const made = rows();
    const text = [columns, ...made.rows].map(row => row.map(cell).join(",")).join("\n") + "\n";
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
    link.download = "labels_overlay.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    message.textContent = `Exported ${made.rows.length} row${made.rows.length === 1 ? "" : "s"}`
      + (made.before ? `, including ${made.before} of the existing labels_overlay.csv` : "")
      + (made.passed ? `; skipped ${made.passed}, since a finding with a higher confidence corrects the same label` : "")
      + ".";
  });

  count();
  filter();
})();
