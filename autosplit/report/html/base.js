"use strict";
/* What the charts share: the plan's numbers, units, colours (Okabe and Ito, 2008) and patterns, which say the same. */
const plan = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#b3a500", "#8a8f96"];
const GLYPHS = ["●", "■", "▲", "◆", "▼", "★"];
const DASHES = ["solid", "dashed", "dotted", [8, 3, 2, 3], [12, 4], [3, 6]];
const HOST = plan.devices.length;
const charts = [];

/* No device has the colour of ink, nor the hollow mark: they are the host's. */
const colour = (device) => (device === HOST ? shade("ink") : COLOURS[device % COLOURS.length]);
const glyph = (device) => (device === HOST ? "○" : GLYPHS[device % GLYPHS.length]);
const deviceName = (device) => (device === HOST ? "host" : plan.devices[device].name);
const lane = (device) => `${glyph(device)} ${deviceName(device)}`;
const shade = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function inUnits(value, step, units) {
  let unit = 0;
  let found = value;
  while (Math.abs(found) >= step && unit < units.length - 1) {
    found /= step;
    unit += 1;
  }
  return `${unit ? found.toFixed(1) : Math.round(found)} ${units[unit]}`;
}
const sayBytes = (bytes) => inUnits(bytes, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);
const sayTime = (ns) => inUnits(ns, 1000, ["ns", "us", "ms", "s"]);

const axisTime = (ns) => sayTime(ns).replace(".0 ", " ");

/** Short marks for an axis of memory: one unit for all of them. */
function byteAxis(most) {
  const power = Math.min(4, Math.max(0, Math.floor(Math.log2(Math.max(1, most)) / 10)));
  const unit = ["B", "KiB", "MiB", "GiB", "TiB"][power];
  const scale = 1024 ** power;
  const rough = most / scale / 6;
  const ten = 10 ** Math.floor(Math.log10(Math.max(rough, 1e-9)));
  const nice = [1, 2, 5, 10].map((factor) => factor * ten).find((found) => found >= rough);
  return { scale, interval: nice, label: (value) => `${+value.toFixed(3)} ${unit}` };
}

/** A stripe of two shades at 0, 45 or 90 degrees, as a fill for a canvas. */
function stripes(front, back, turn) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 8;
  const pen = canvas.getContext("2d");
  pen.fillStyle = back;
  pen.fillRect(0, 0, 8, 8);
  pen.fillStyle = front;
  if (turn === 45) {
    for (const x of [-8, 0, 8]) {
      pen.beginPath();
      [[x, 8], [x + 8, 0], [x + 13, 0], [x + 5, 8]].forEach((point) => pen.lineTo(...point));
      pen.fill();
    }
  } else {
    for (const at of [0, 4]) pen.fillRect(turn ? at : 0, turn ? 0 : at, turn ? 2 : 8, turn ? 8 : 2);
  }
  return { image: canvas, repeat: "repeat" };
}
const KINDS = [
  { name: "forward", fill: "#0072b2", ink: "#ffffff" },
  { name: "backward", fill: stripes("#e69f00", "#f3b73e", 45), ink: "#16191d" },
  { name: "copy", fill: stripes("#009e73", "#9fdcc8", 90), ink: "#16191d" },
  { name: "gradient back", fill: stripes("#cc79a7", "#f0d3e3", 0), ink: "#16191d" },
];

const tooltip = () => ({
  renderMode: "richText", /* drawn, never HTML */
  confine: true,
  backgroundColor: shade("paper"),
  borderColor: shade("line"),
  textStyle: { color: shade("ink"), fontSize: 12 },
});
const axisStyle = () => ({
  axisLine: { show: false },
  axisTick: { show: false },
  axisLabel: { color: shade("soft") },
  nameTextStyle: { color: shade("soft") },
  splitLine: { lineStyle: { color: shade("line") } },
});
const laneWidth = () => Math.min(118, 30 + 7.2 * Math.max(...[...plan.devices.keys(), HOST].map((device) => deviceName(device).length)));
const deviceAxis = (names) => ({
  type: "category",
  inverse: true,
  data: names,
  ...axisStyle(),
  axisLabel: { color: shade("ink"), width: 110, overflow: "truncate", interval: 0 },
});
/** The ground of every second row, as a series: the areas of a category axis that is inverse are drawn beside its rows. */
const lanes = (rows, axis = 0) => ({
  type: "custom", xAxisIndex: axis, yAxisIndex: axis, silent: true, tooltip: { show: false }, z: 0, encode: { y: 0 },
  data: rows.flatMap((_, row) => (row % 2 ? [[row]] : [])),
  renderItem: (params, api) => {
    const [at, height] = [api.coord([0, api.value(0)])[1], api.size([0, 1])[1]];
    return { type: "rect", shape: { x: params.coordSys.x, y: at - height / 2, width: params.coordSys.width, height }, style: { fill: shade("lane") } };
  },
});
const base = () => ({ animation: false, textStyle: { color: shade("ink"), fontFamily: getComputedStyle(document.body).fontFamily } });

/** Make a chart in the element of that id, as high as asked, drawn anew by `draw` when colours or sizes change. */
function chart(id, height, draw) {
  const element = document.getElementById(id);
  if (!element) return;
  element.style.height = `${height}px`;
  const made = echarts.init(element, null, { renderer: "canvas" });
  const redraw = () => {
    const { marks, ...option } = draw(made);
    made.setOption({ ...base(), ...option }, { notMerge: true });
    element.dataset.marks = String(marks ?? option.series.reduce((sum, series) => sum + series.data.length, 0));
  };
  charts.push({ made, redraw });
  redraw();
}
