"use strict";
// Tables sort by a click or the keyboard on a head: down, up, and back to the order of the report.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const original = Array.from(body.rows);
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const next = now === "descending" ? "ascending" : now === "ascending" ? "none" : "descending";
      heads.forEach((other) => other.hasAttribute("aria-sort") && other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", next);
      const rows = original.slice();
      if (next !== "none") rows.sort((a, b) => compare(a.cells[column], b.cells[column], next === "ascending" ? 1 : -1));
      body.append(...rows);
    });
  });
}
function compare(a, b, sign) {
  const [x, y] = [a.dataset.sort, b.dataset.sort];
  if (x === undefined || y === undefined) {  // what has no number is sorted as text, below what has one
    if (x !== undefined) return -1;
    if (y !== undefined) return 1;
    return sign * a.textContent.localeCompare(b.textContent);
  }
  return sign * (Number(x) - Number(y));
}
const box = document.getElementById("beside");
if (box) box.addEventListener("change", () => document.body.classList.toggle("plain", !box.checked));
