/* Start: colours as the reader's system has them, charts, table. */
const root = document.documentElement;
const themeButton = document.getElementById("theme");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function setTheme(theme) {
  root.dataset.theme = theme;
  themeButton.textContent = theme === "dark" ? "light" : "dark";
  themeButton.setAttribute("aria-pressed", String(theme === "dark"));
  charts.forEach(({ redraw }) => redraw());
}
const systemTheme = () => (prefersDark.matches ? "dark" : "light");

setTheme(systemTheme());
chart("memory", 62 + plan.devices.length * Math.max(14, Math.min(34, 600 / plan.devices.length)), drawMemory);
chart("timeline", 340, drawTimeline);
chart("schedule", scheduleHeight(), drawSchedule);
chart("graph", 50 + graphRows() * Math.max(20, Math.min(48, 700 / graphRows())), drawGraph);
startTable();

themeButton.hidden = false;
themeButton.addEventListener("click", () => setTheme(root.dataset.theme === "dark" ? "light" : "dark"));
prefersDark.addEventListener("change", () => setTheme(systemTheme()));
let before = "light";
addEventListener("beforeprint", () => { before = root.dataset.theme; setTheme("light"); charts.forEach(({ made }) => made.resize()); });
addEventListener("afterprint", () => setTheme(before));
addEventListener("resize", () => charts.forEach(({ made }) => made.resize()));

const graphChart = echarts.getInstanceByDom(document.getElementById("graph"));
const graphDrawing = charts.find(({ made }) => made === graphChart);

/** The blocks as a list, for keyboards and for readers of the screen: a button opens what can be opened. */
function listBlocks() {
  document.getElementById("blocks").replaceChildren(...drawn.map((block) => {
    const item = document.createElement("li");
    const said = document.createElement(inside(block).length ? "button" : "span");
    said.textContent = `${block.label}: ${sayBlock(block)}`;
    if (said.tagName === "BUTTON") said.addEventListener("click", () => openAndRedraw(block));
    item.append(said);
    return item;
  }));
}
function redrawGraph() {
  graphDrawing.redraw();
  listBlocks();
}
function openAndRedraw(block) {
  openBlock(block);
  redrawGraph();
}
graphChart.on("click", ({ seriesIndex, data }) => {
  if (seriesIndex === 2) openAndRedraw(drawn[data[3]]);
});
listBlocks();
const collapse = document.getElementById("collapse");
collapse.hidden = false;
collapse.addEventListener("click", () => { visible = firstBlocks(); redrawGraph(); });
root.dataset.readyMs = String(Math.round(performance.now()));
