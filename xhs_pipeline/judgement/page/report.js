"use strict";
// Turns the heads of every table into buttons that sort it. Cells carry what they are sorted by in data-k; a cell without it stays last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const key = (row, column) => row.cells[column].dataset.k;
  const sort = (column, down) => {
    const keys = [...body.rows].map((row) => key(row, column)).filter((k) => k !== undefined);
    const numbers = keys.every((k) => k !== "" && Number.isFinite(Number(k)));
    const order = (a, b) => (numbers ? Number(a) - Number(b) : a.localeCompare(b, "zh"));
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a, column), key(b, column)];
      if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
      return down ? order(y, x) : order(x, y);
    });
    body.append(...rows);
    heads.forEach((head, i) => head.setAttribute("aria-sort", i !== column ? "none" : down ? "descending" : "ascending"));
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    const arrow = document.createElement("span");
    arrow.className = "arrow";
    button.firstChild.after(arrow);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    const numeric = head.classList.contains("n");
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      sort(column, now === "none" ? numeric : now === "ascending");
    });
  });
}
