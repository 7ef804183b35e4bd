"use strict";
// Sort a table by a column: numbers first in decreasing order, text in alphabetical order, empty cells always last.
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const header = button.closest("th");
    const table = header.closest("table");
    const column = header.cellIndex;
    const value = (row) => row.cells[column].dataset.value;
    const numeric = table.querySelector(`tbody td:nth-child(${column + 1})[data-value]`) !== null;
    const before = header.getAttribute("aria-sort");
    const falling = before === "none" ? numeric : before === "ascending";
    for (const other of header.parentNode.cells) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const text = (row) => row.cells[column].textContent.trim();
    const empty = (row) => (numeric ? value(row) === undefined : text(row) === "");
    for (const body of table.tBodies) {
      const rows = [...body.rows].sort((a, b) => {
        if (empty(a) || empty(b)) return empty(a) - empty(b);
        const order = numeric ? value(a) - value(b) : text(a).localeCompare(text(b), "en", {numeric: true});
        return falling ? -order : order;
      });
      body.append(...rows);
    }
  });
}
const theme = document.getElementById("theme");
const root = document.documentElement;
const remember = (value) => { try { localStorage.setItem("cerberus-report", value); } catch { /* applies to this view only */ } };
try {
  const kept = localStorage.getItem("cerberus-report");
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
} catch { /* local files may have no storage */ }
const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"))
  === "dark";
const name = () => { theme.textContent = isDark() ? "Light page" : "Dark page"; };
theme.hidden = false;
theme.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  remember(root.dataset.theme);
  name();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);
name();
// Open the details element that contains the target of a link.
const unfold = () => {
  const target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  if (!target) return;
  for (let node = target.parentElement; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
  target.scrollIntoView();
};
addEventListener("hashchange", unfold);
unfold();
// Print all details.
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("section > details")) fold.open = true;
});
