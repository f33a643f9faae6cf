/* Graph: blocks of modules in lanes, one mark for each tensor that is copied. A block opens into what it is made of. */
const MOST_CHILDREN = 40;
const tree = [];

/** Number the modules as the plan does: parents before children. */
function index(branch, path) {
  const [name, nodes, at, children, own] = branch;
  const module = { name: path ? `${path}.${name}` : name, nodes, at, children: [], own };
  tree.push(module);
  module.children = children.map((child) => index(child, module.name));
  return module;
}
index(plan.graph.tree, "");

const firstBlocks = () => plan.graph.blocks.map((block) => ({ ...block }));
let visible = firstBlocks();

/** The device with most nodes of a module. */
const mainDevice = (module) => Number(Object.entries(module.nodes).sort((a, b) => b[1] - a[1])[0][0]);
const blockOf = (module) => ({ label: module.name || "the model", device: mainDevice(module), at: module.at,
  count: Object.values(module.nodes).reduce((sum, count) => sum + count, 0), modules: [tree.indexOf(module)], part: false });

/** Operators as blocks: one for each run on a device, no more than can be read. */
function blocksOf(operators, name) {
  const size = Math.ceil(operators.length / MOST_CHILDREN);
  const found = [];
  for (const operator of operators) {
    const last = found[found.length - 1];
    if (last && last.device === operator[1] && last.operators.length < size) last.operators.push(operator);
    else found.push({ device: operator[1], at: operator[2], operators: [operator] });
  }
  return found.map((block) => ({ ...block, count: block.operators.length, modules: [],
    label: block.operators.length > 1 ? `${block.operators.length} ops of ${name || "the model"}` : `${block.operators[0][0]} of ${name || "the model"}` }));
}

/** What a block is made of: its modules, or the submodules and operators of its only one. */
function inside(block) {
  if (block.operators) return block.count > 1 ? blocksOf(block.operators, block.label.replace(/^\d+ ops of /, "")) : [];
  if (block.modules.length !== 1) return block.modules.map((number) => blockOf(tree[number]));
  const module = tree[block.modules[0]];
  return [...module.children.map(blockOf), ...blocksOf(module.own, module.name)];
}

function open(block) {
  const parts = inside(block);
  if (!parts.length) return;
  const same = (other) => other === block || (block.part && other.part && other.modules[0] === block.modules[0]);
  visible = visible.filter((other) => !same(other)).concat(parts);
}

/** Places: blocks in order from left to right, copies between the lanes that they join. */
function layout() {
  visible.sort((a, b) => a.at - b.at || a.device - b.device);
  visible.forEach((block, slot) => { block.slot = slot; });
  const on = new Map();
  visible.forEach((block) => on.set(block.device, [...(on.get(block.device) || []), block]));
  const flows = [...on.values()].flatMap((blocks) => blocks.slice(1).map((block, i) => [blocks[i].slot + 0.94, block.device, block.slot + 0.06]));
  const seen = new Map();
  const copies = plan.graph.copies.map((copy) => {
    const src = (on.get(copy.src) || []).filter((block) => block.at <= copy.at).pop();
    const dst = (on.get(copy.dst) || []).find((block) => block.at + block.count > copy.at) || (on.get(copy.dst) || [])[0];
    const x0 = src ? src.slot + 0.94 : dst ? dst.slot - 0.4 : 0;
    const x1 = dst ? dst.slot + 0.06 : x0 + 0.4;
    const key = `${x0} ${x1} ${copy.src} ${copy.dst}`;
    const turn = seen.get(key) || 0;
    seen.set(key, turn + 1);
    return [x0, copy.src, x1, copy.dst, turn, copy];
  });
  return { flows, copies, shared: copies.map(([x0, src, x1, dst]) => seen.get(`${x0} ${x1} ${src} ${dst}`)) };
}

function renderFlow(params, api) {
  const a = api.coord([api.value(0), api.value(1)]);
  const b = api.coord([api.value(2), api.value(1)]);
  return { type: "line", shape: { x1: a[0], y1: a[1], x2: b[0], y2: b[1] }, style: { stroke: shade("soft"), lineWidth: 1, opacity: 0.5 }, silent: true };
}

function renderBlock(params, api) {
  const [slot, row] = [api.value(0), api.value(1)];
  const [from, to] = [api.coord([slot + 0.06, row]), api.coord([slot + 0.94, row])];
  const height = Math.min(30, api.size([0, 1])[1] * 0.66);
  const width = Math.max(3, to[0] - from[0]);
  const block = visible[api.value(2)];
  const box = { type: "rect", shape: { x: from[0], y: from[1] - height / 2, width, height, r: 4 },
    style: { fill: shade("paper"), stroke: colour(block.device), lineWidth: inside(block).length ? 2 : 1 } };
  const strip = { type: "rect", shape: { x: from[0], y: from[1] - height / 2, width: Math.min(5, width), height, r: [4, 0, 0, 4] }, style: { fill: colour(block.device) }, silent: true };
  if (width < 26) return { type: "group", children: [box, { ...strip, shape: { ...strip.shape, width, r: 4 }, style: { fill: colour(block.device), opacity: 0.75 } }] };
  const text = { text: block.label, x: from[0] + 9, y: from[1], width: width - 13, overflow: "truncate", ellipsis: "…", fill: shade("ink"), align: "left", verticalAlign: "middle", font: "11px sans-serif" };
  return { type: "group", children: [box, strip, { type: "text", style: text, silent: true }] };
}

function renderCopy(params, api) {
  const [x0, src, x1, dst, turn, shared, i] = [0, 1, 2, 3, 4, 5, 6].map((k) => api.value(k));
  const copy = plan.graph.copies[i];
  const [a, b] = [api.coord([x0, src]), api.coord([x1, dst])];
  const spread = shared > 1 ? (turn - (shared - 1) / 2) * Math.min(9, 90 / shared) : 0;
  const [mx, my] = [(a[0] + b[0]) / 2 + spread, (a[1] + b[1]) / 2];
  const size = 4 + Math.max(0, Math.min(5, Math.log2(copy.size_bytes / 2 ** 16) / 2.5));
  const line = { stroke: colour(copy.src), lineWidth: 1.2, opacity: shared > 3 ? 0.35 : 0.8, fill: "none" };
  const curve = (from, to) => ({ type: "bezierCurve", silent: true, style: line,
    shape: { x1: from[0], y1: from[1], x2: to[0], y2: to[1], cpx1: from[0] + 12, cpy1: from[1], cpx2: to[0] - 12, cpy2: to[1] } });
  return { type: "group", children: [curve(a, [mx, my]), curve([mx, my], b),
    { type: "polygon", shape: { points: [[mx, my - size], [mx + size, my], [mx, my + size], [mx - size, my]] }, style: { fill: colour(copy.src), stroke: shade("paper"), lineWidth: 1 } }] };
}

const graphRows = () => HOST + (plan.graph.copies.some((copy) => copy.src === HOST || copy.dst === HOST) ? 1 : 0);

function sayMark({ seriesIndex, data }) {
  if (seriesIndex === 1) {
    const copy = plan.graph.copies[data[6]];
    return `${copy.label}\n${deviceName(copy.src)} to ${deviceName(copy.dst)}: ${sayBytes(copy.size_bytes)}, ${sayTime(copy.time_ns)}${copy.gradient ? ", gradient back" : ""}`;
  }
  const block = visible[data[2]];
  return block ? `${block.label}\n${lane(block.device)}: ${block.count} node${block.count > 1 ? "s" : ""}` : "";
}

function drawGraph() {
  const { flows, copies, shared } = layout();
  const rows = Array.from({ length: graphRows() }, (_, device) => lane(device));
  const slots = visible.length;
  const note = document.getElementById("graph-note");
  const left = plan.graph.copies_left_out;
  note.textContent = `${plan.graph.nodes} nodes in ${slots} blocks, ${plan.graph.copies.length} copies${left ? ` (the largest; ${left} more are not drawn)` : ""}.`;
  return {
    tooltip: { ...tooltip(), trigger: "item", formatter: sayMark },
    grid: { left: 118, right: 16, top: 6, bottom: slots > 30 ? 40 : 8 },
    xAxis: { type: "value", min: -0.6, max: slots + 0.2, show: false },
    yAxis: { ...deviceAxis(rows), splitArea: { show: true, areaStyle: { color: [shade("lane"), "transparent"] } } },
    dataZoom: [{ type: "inside", zoomOnMouseWheel: "ctrl", filterMode: "none" },
      ...(slots > 30 ? [{ type: "slider", filterMode: "none", height: 18, bottom: 6, showDetail: false, borderColor: shade("line") }] : [])],
    series: [
      { type: "custom", renderItem: renderFlow, data: flows, clip: true, silent: true, encode: { x: [0, 2], y: 1 } },
      { type: "custom", renderItem: renderCopy, data: copies.map((copy, i) => [...copy.slice(0, 5), shared[i], i]), clip: true, encode: { x: [0, 2], y: 1 }, z: 4 },
      { type: "custom", renderItem: renderBlock, data: visible.map((block, i) => [block.slot, block.device, i]), clip: true, encode: { x: 0, y: 1 }, z: 3 },
    ],
  };
}
