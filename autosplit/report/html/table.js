/* The table of transfers: sorted by a click on a header, filtered by a word. */
function startTable() {
  const table = document.getElementById("transfers");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  table.querySelectorAll("thead th").forEach((header, column) => header.querySelector("button").addEventListener("click", () => {
    const up = header.getAttribute("aria-sort") === "descending";
    table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", up ? "ascending" : "descending");
    rows.sort((a, b) => String(value(a, column)).localeCompare(String(value(b, column)), "en", { numeric: true }) * (up ? 1 : -1));
    body.append(...rows);
  }));
  const search = document.getElementById("search");
  search.hidden = false;
  search.addEventListener("input", () => {
    const word = search.value.toLowerCase();
    rows.forEach((row) => { row.hidden = !row.textContent.toLowerCase().includes(word); });
    document.getElementById("found").textContent = word ? `${rows.filter((row) => !row.hidden).length} found` : "";
  });
}
