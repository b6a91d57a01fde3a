for (const head of document.querySelectorAll("table.sortable thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  head.append(button);
  button.addEventListener("click", () => {
    const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.value;
    const rows = [...body.rows].sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    });
    body.append(...rows);
  });
}
// Whoever scrolls sideways has to see which variant a row is; a narrow page has no room for that.
const wide = matchMedia("(min-width: 900px)");
const hold = () => {
  for (const table of document.querySelectorAll("table.sticky")) {
    const first = table.rows[0].cells, left = [0];
    for (const column of [1, 2]) left.push(left[column - 1] + first[column - 1].offsetWidth);
    for (const row of table.rows) for (const column of [1, 2]) {
      const cell = row.cells[column];
      cell.classList.toggle("held", wide.matches);
      cell.style.left = wide.matches ? `${left[column]}px` : "";
    }
  }
};
hold();
addEventListener("resize", hold);
