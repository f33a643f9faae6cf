/* Graph: blocks of modules in lanes, one mark for each tensor that is copied. A block opens into what it is made of. */
const MOST_CHILDREN = 40;
const tree = [];

/** Number the modules as the plan does: parents before children. */
function index(branch, path) {
  const [name, nodes, at, children, own] = branch;
  const module = { name: path ? `${path}.${name}` : name, nodes, at, children: [], own, number: tree.length };
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
  count: Object.values(module.nodes).reduce((sum, count) => sum + count, 0), modules: [module.number], part: false });

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

function openBlock(block) {
  const parts = inside(block);
  if (!parts.length) return;
  const same = (other) => other === block || (block.part && other.part && other.modules[0] === block.modules[0]);
  visible = visible.filter((other) => !same(other)).concat(parts);
}

const pen = document.createElement("canvas").getContext("2d");
const FONT = () => `10.5px ${getComputedStyle(document.body).fontFamily}`;

/** How wide a block would like to be, its label in two lines. */
function wish(label) {
  pen.font = FONT();
  const widths = label.split(" ").map((word) => pen.measureText(word).width);
  return Math.max(58, Math.min(150, 28 + Math.max(...widths, 0.54 * pen.measureText(label).width)));
}

const MOST_HOST = 8; /* boxes of what comes from the host, and of what goes to it; more are drawn as one */
let drawn = []; /* the visible blocks and the host's, from left to right */

/** What comes from the host and what goes to it, as boxes in its lane: one for each tensor, beside who reads or makes it. */
function hostBlocks() {
  const first = new Map();
  for (const block of visible) first.set(block.device, Math.min(block.at, first.get(block.device) ?? Infinity));
  const found = new Map();
  const add = (copy, comes, at) => {
    const key = `${comes} ${copy.label}`;
    const block = found.get(key) || { device: HOST, label: copy.label, at, count: 0, modules: [], comes, copies: [] };
    block.at = comes ? Math.min(block.at, at) : Math.max(block.at, at);
    block.copies.push(copy);
    found.set(key, block);
  };
  for (const copy of plan.graph.copies) {
    if (copy.src === HOST) add(copy, true, (first.get(copy.dst) ?? 0) - 0.5);
    if (copy.dst === HOST) add(copy, false, copy.at + 0.5);
  }
  return [true, false].flatMap((comes) => {
    const blocks = [...found.values()].filter((block) => block.comes === comes);
    if (blocks.length <= MOST_HOST) return blocks;
    const at = blocks.map((block) => block.at).reduce(comes ? (a, b) => Math.min(a, b) : (a, b) => Math.max(a, b));
    return [{ ...blocks[0], at, label: `${blocks.length} ${comes ? "inputs" : "results"}`, copies: blocks.flatMap((block) => block.copies) }];
  });
}

/** Places: blocks in order from left to right; a copy at the edge of the lane that it goes to, at its reader. */
function layout() {
  const inOrder = (a, b) => a.at - b.at || a.device - b.device;
  visible.sort(inOrder);
  drawn = [...visible, ...hostBlocks()].sort(inOrder);
  let right = 0;
  const on = new Map();
  for (const block of drawn) {
    block.left = right + 5;
    block.right = right += wish(block.label);
    on.set(block.device, [...(on.get(block.device) || []), block]);
  }
  const flows = [...on].filter(([device]) => device !== HOST).flatMap(([, blocks]) => blocks.slice(1).map((block, i) => [blocks[i].right, block.device, block.left]));
  const seen = new Map();
  const next = (key) => seen.set(key, (seen.get(key) ?? -1) + 1).get(key);
  const copies = plan.graph.copies.map((copy, i) => {
    const [sources, readers] = [on.get(copy.src) || [], on.get(copy.dst) || []];
    const hosts = (block) => block.copies.includes(copy);
    const src = copy.src === HOST ? sources.find(hosts) : sources.filter((block) => block.at <= copy.at).pop();
    const dst = copy.dst === HOST ? readers.find(hosts) : readers.find((block) => block.at + block.count > copy.at) || readers[0];
    const x0 = src ? src.right : dst ? Math.max(0, dst.left - 40) : 0;
    const x1 = dst ? dst.left : x0 + 10;
    const turn = next(`to ${x1} ${copy.dst} ${copy.src < copy.dst}`);
    const line = next(`pair ${x0} ${copy.src} ${x1} ${copy.dst}`) === 0;
    return [x0, copy.src, x1, copy.dst, turn, line ? 1 : 0, i];
  });
  return { flows, copies, right };
}

function renderFlow(params, api) {
  const a = api.coord([api.value(0), api.value(1)]);
  const b = api.coord([api.value(2), api.value(1)]);
  return { type: "line", shape: { x1: a[0], y1: a[1], x2: b[0], y2: b[1] }, style: { stroke: shade("soft"), lineWidth: 1, opacity: 0.5 }, silent: true };
}

function renderBlock(params, api) {
  const [left, right, row] = [0, 1, 2].map((i) => api.value(i));
  const [from, to] = [api.coord([left, row]), api.coord([right, row])];
  const height = Math.min(34, api.size([0, 1])[1] * 0.74);
  const width = Math.max(3, to[0] - from[0]);
  const block = drawn[api.value(3)];
  const isHost = block.device === HOST; /* round, and dashed: no module of the model */
  const box = { type: "rect", shape: { x: from[0], y: from[1] - height / 2, width, height, r: isHost ? height / 2 : 4 },
    style: { fill: shade("paper"), stroke: colour(block.device), lineWidth: inside(block).length ? 2 : 1, lineDash: isHost ? [4, 3] : null } };
  const strip = { type: "rect", shape: { x: from[0], y: from[1] - height / 2, width: Math.min(5, width), height, r: [4, 0, 0, 4] }, style: { fill: colour(block.device) }, silent: true };
  if (width < 26) return { type: "group", children: [box, { ...strip, shape: { ...strip.shape, width, r: 4 }, style: { fill: colour(block.device), opacity: 0.75 } }] };
  const text = { text: width < wish(block.label) - 14 ? block.label.replace(/^\D+(?=\d)/, "") : block.label, x: from[0] + 9, y: from[1], width: width - 10, height: height - 4, overflow: height > 26 ? "break" : "truncate",
    lineOverflow: "truncate", ellipsis: "…", lineHeight: 12, fill: shade("ink"), align: "left", verticalAlign: "middle", font: FONT() };
  return { type: "group", children: [box, ...(isHost ? [] : [strip]), { type: "text", style: text, silent: true }] };
}

/** Where a copy's mark is: at the edge of the lane that it goes to; those for one reader side by side, in rows. */
function markOf(api) {
  const [src, x1, dst, turn, i] = [1, 2, 3, 4, 6].map((k) => api.value(k));
  const copy = plan.graph.copies[i];
  const reader = api.coord([x1, dst]);
  const height = api.size([0, 1])[1];
  const side = src < dst ? -1 : 1;
  return { copy, x: reader[0] + 7 + (turn % 6) * 10, y: reader[1] + side * (height / 2 - 2 - (Math.floor(turn / 6) % 3) * 5), side,
    end: reader[1] + side * Math.min(17, height * 0.37) };
}

/** A curve from where tensors were made, one for all between the same two blocks, and a stub from a mark to its reader. */
function renderLine(params, api) {
  const { copy, x, y, side, end } = markOf(api);
  const from = api.coord([api.value(0), copy.src]);
  const style = { stroke: colour(copy.src), lineWidth: 1.2, opacity: 0.75, fill: "none" };
  const curve = { x1: from[0], y1: from[1], x2: x, y2: y, cpx1: from[0] + 14, cpy1: from[1], cpx2: x, cpy2: y + side * Math.min(30, Math.abs(y - from[1]) / 2) };
  return { type: "group", silent: true, children: [
    ...(api.value(5) ? [{ type: "bezierCurve", shape: curve, style }] : []),
    { type: "line", shape: { x1: x, y1: y, x2: x, y2: end }, style }] };
}

function renderMark(params, api) {
  const { copy, x, y } = markOf(api);
  const size = 3.5 + Math.max(0, Math.min(3, Math.log2(copy.size_bytes / 2 ** 20) / 3));
  return { type: "polygon", shape: { points: [[x, y - size], [x + size, y], [x, y + size], [x - size, y]] },
    style: { fill: colour(copy.src), stroke: shade("paper"), lineWidth: 1 } };
}

const graphRows = () => HOST + (plan.graph.copies.some((copy) => copy.src === HOST || copy.dst === HOST) ? 1 : 0);

/** Where a block is and of how many nodes; of the host's, where it is copied to or from. */
function sayBlock(block) {
  if (block.device !== HOST) return `${lane(block.device)}: ${block.count} node${block.count > 1 ? "s" : ""}`;
  const others = new Set(block.copies.map((copy) => deviceName(block.comes ? copy.dst : copy.src)));
  return `${lane(HOST)}: copied ${block.comes ? "to" : "from"} ${[...others].join(", ")}`;
}

function sayMark({ seriesIndex, data }) {
  if (seriesIndex === 1) {
    const copy = plan.graph.copies[data[6]];
    return `${copy.label}\n${deviceName(copy.src)} to ${deviceName(copy.dst)}: ${sayBytes(copy.size_bytes)}, ${sayTime(copy.time_ns)}${copy.gradient ? ", gradient back" : ""}`;
  }
  const block = drawn[data[3]];
  return block ? `${block.label}\n${sayBlock(block)}` : "";
}

function drawGraph() {
  const { flows, copies, right } = layout();
  const rows = Array.from({ length: graphRows() }, (_, device) => lane(device));
  const note = document.getElementById("graph-note");
  const left = plan.graph.copies_left_out;
  const single = plan.graph.single;
  note.textContent = `${plan.graph.nodes} nodes in ${visible.length} blocks, ${plan.graph.copies.length} copies${left ? ` (the largest; ${left} more are not drawn)` : ""}.${single ? ` ${single} single operators, of modules that hold others or are nearly whole on another device, have no block.` : ""}`;
  return {
    tooltip: { ...tooltip(), trigger: "item", formatter: sayMark },
    grid: { left: laneWidth(), right: 16, top: 6, bottom: drawn.length > 30 ? 40 : 8 },
    xAxis: { type: "value", min: -20, max: right * 1.02 + 20, show: false },
    yAxis: deviceAxis(rows),
    dataZoom: [{ type: "inside", zoomOnMouseWheel: "ctrl", filterMode: "none" },
      ...(drawn.length > 30 ? [{ type: "slider", filterMode: "none", height: 18, bottom: 6, showDetail: false, borderColor: shade("line") }] : [])],
    series: [
      { type: "custom", renderItem: renderFlow, data: flows, clip: true, silent: true, encode: { x: [0, 2], y: 1 } },
      { type: "custom", renderItem: renderMark, data: copies, clip: true, encode: { x: [0, 2], y: 1 }, z: 4 },
      { type: "custom", renderItem: renderBlock, data: drawn.map((block, i) => [block.left, block.right, block.device, i]), clip: true, encode: { x: [0, 1], y: 2 }, z: 3 },
      { type: "custom", renderItem: renderLine, data: copies, clip: true, silent: true, encode: { x: [0, 2], y: 1 }, z: 2 },
      lanes(rows),
    ],
    marks: drawn.length + copies.length,
  };
}
