/* Schedule: who does what when; as planned, and one device at a time. */

/** A bar of the schedule. Compute has the upper part of its device's row, copies the lower, on both of their ends;
    the host computes nothing, so its copies have the upper part. */
function renderBar(params, api) {
  const [row, start, end, kind, microbatch] = [0, 1, 2, 3, 4].map((i) => api.value(i));
  const from = api.coord([start, row]);
  const to = api.coord([end, row]);
  const height = api.size([0, 1])[1];
  const copies = kind > 1 && row !== HOST;
  const shape = echarts.graphic.clipRectByRect(
    { x: from[0], y: from[1] - height * (copies ? -0.22 : 0.4), width: Math.max(to[0] - from[0], 0.3), height: height * (copies ? 0.2 : 0.6) },
    params.coordSys,
  );
  if (!shape) return null;
  const bar = { type: "rect", shape, style: { fill: KINDS[kind].fill, stroke: plan.microbatched && shape.width > 4 ? shade("paper") : null, lineWidth: 0.5 } };
  if (kind > 1 || !plan.microbatched || shape.width < 4 + 6.5 * String(microbatch).length || height < 16 || microbatch < 0) return bar;
  const text = { text: String(microbatch), x: shape.x + shape.width / 2, y: shape.y + shape.height / 2, fill: KINDS[kind].ink,
    align: "center", verticalAlign: "middle", font: "10.5px sans-serif" };
  return { type: "group", children: [bar, { type: "text", style: text, silent: true }] };
}

/** Where the plan is done, in the picture of one device at a time. */
const planEnd = (end) => ({ silent: true, symbol: "none", data: [{ xAxis: end }], lineStyle: { color: "#d55e00", type: "dashed", width: 1.5 },
  label: { show: false } });

/** As planned; and one device at a time where that takes longer. */
const schedules = () => {
  const { planned, serial } = plan.schedule;
  return serial.total_ns > 1.01 * planned.total_ns ? [planned, serial] : [planned];
};

function drawSchedule() {
  const { planned, serial } = plan.schedule;
  const shown = schedules();
  const titles = [`as planned: ${sayTime(plan.step_ns)}`, `one device at a time: ${sayTime(serial.total_ns)}; dashed: the plan is done`];
  plan.microbatched = planned.bars.some((bar) => bar[4] > 0);
  const rows = Array.from({ length: scheduleRows() }, (_, device) => lane(device));
  const height = (rows.length * rowHeight()) + 4;
  const marks = shown.map((schedule) => schedule.bars.flatMap((bar) => (bar[3] > 1 && bar[0] !== bar[6] ? [bar, [bar[6], ...bar.slice(1, 6), bar[0]]] : [bar])));
  const say = ({ data: [row, start, end, kind, microbatch, , other] }) =>
    `${lane(row)}  ${KINDS[kind].name}${microbatch >= 0 && plan.microbatched && kind < 2 ? ` of micro-batch ${microbatch}` : ""}${other >= 0 ? ` with ${deviceName(other)}` : ""}\n${sayTime(start)} to ${sayTime(end)}: ${sayTime(end - start)}`;
  return {
    title: titles.slice(0, shown.length).map((text, i) => ({ text, left: 0, top: i * (height + 52), textStyle: { fontSize: 13, fontWeight: 600, color: shade("ink") } })),
    tooltip: { ...tooltip(), trigger: "item", formatter: say },
    grid: shown.map((_, i) => ({ left: laneWidth(), right: 24, top: 24 + i * (height + 52), height })),
    xAxis: shown.map((schedule, i) => ({ type: "value", gridIndex: i, min: 0, max: Math.max(1, schedule.total_ns), ...axisStyle(), axisLabel: { color: shade("soft"), formatter: axisTime, showMaxLabel: false } })),
    yAxis: shown.map((_, i) => ({ ...deviceAxis(rows), gridIndex: i })),
    dataZoom: [{ type: "inside", xAxisIndex: shown.map((_, i) => i), zoomOnMouseWheel: "ctrl", moveOnMouseMove: true, filterMode: "none" }],
    series: shown.flatMap((_, i) => [
      { type: "custom", xAxisIndex: i, yAxisIndex: i, renderItem: renderBar, encode: { x: [1, 2], y: 0 }, data: marks[i], clip: true,
        markLine: i ? planEnd(planned.total_ns) : undefined },
      lanes(rows, i),
    ]),
    marks: marks.flat().length,
  };
}
/** The host has a row where the schedule says when it sends or gets anything: that of a pipeline does not. */
const scheduleRows = () => HOST + (plan.schedule.planned.bars.some((bar) => bar[0] === HOST || bar[6] === HOST) ? 1 : 0);
const rowHeight = () => Math.max(12, Math.min(30, 480 / scheduleRows()));
const scheduleHeight = () => schedules().length * (scheduleRows() * rowHeight() + 52);
