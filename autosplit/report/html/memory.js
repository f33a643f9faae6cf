/* Memory: bars against capacity, and lines over one step. */
const PARTS = { weights: 0, gradients: 1, optimizer: 2, activations: 4, cache: 5, workspace: 3, reserve: 7 };

function drawMemory() {
  const most = Math.max(1, ...plan.devices.map((device) => Math.max(device.memory_bytes, device.reserved_bytes)));
  const axis = byteAxis(most);
  const parts = Object.keys(PARTS).filter((part) => plan.devices.some((device) => device.parts[part]));
  const known = (device) => Object.values(device.parts).reduce((sum, bytes) => sum + bytes, 0);
  const bar = (name, bytes, itemStyle) => ({
    name, type: "bar", stack: "memory", barMaxWidth: 26, itemStyle,
    emphasis: { focus: "series" }, data: plan.devices.map((device) => bytes(device) / axis.scale),
  });
  const series = parts.map((part) => bar(part, (device) => device.parts[part], { color: COLOURS[PARTS[part]] }));
  if (plan.devices.some((device) => device.reserved_bytes > known(device))) {
    series.push(bar("reserved", (device) => Math.max(0, device.reserved_bytes - known(device)), { color: COLOURS[0] }));
  }
  const free = { color: "transparent", borderColor: shade("soft"), borderWidth: 1, borderType: "dashed", decal: { color: "transparent" } };
  series.push(bar("free", (device) => Math.max(0, device.memory_bytes - device.reserved_bytes), free));
  return {
    aria: { enabled: true, label: { enabled: false }, decal: { show: true } },
    tooltip: { ...tooltip(), trigger: "axis", axisPointer: { type: "shadow" }, valueFormatter: (value) => sayBytes(value * axis.scale) },
    legend: { top: 0, left: 0, textStyle: { color: shade("soft") }, itemWidth: 20 },
    grid: { left: 4, right: 24, top: 34, bottom: 4, containLabel: true },
    xAxis: { type: "value", max: most / axis.scale, interval: axis.interval, ...axisStyle(),
      axisLabel: { color: shade("soft"), formatter: axis.label, showMaxLabel: false } },
    yAxis: deviceAxis(plan.devices.map((_, device) => lane(device))),
    series,
  };
}

function drawTimeline() {
  const used = plan.devices.map((device, place) => ({ ...device, place })).filter((device) => device.positions.length);
  const most = Math.max(1, ...used.map((device) => Math.max(...device.allocated_bytes)));
  const axis = byteAxis(most);
  const start = Math.min(...used.map((device) => device.positions[0]), ...used[0].phases.map(([, at]) => at));
  const end = Math.max(...used.map((device) => device.positions[device.positions.length - 1])) - start;
  const phases = used[0].phases.map(([name, at], i) => ({ xAxis: at - start, label: { formatter: name, distance: i % 2 ? 16 : 4 } }));
  const series = used.map((device, i) => ({
    name: lane(device.place), type: "line", step: "end", symbol: "none", sampling: "minmax",
    lineStyle: { width: 2, type: DASHES[device.place % DASHES.length], color: colour(device.place) },
    itemStyle: { color: colour(device.place) },
    emphasis: { focus: "series" },
    data: [...device.positions.map((at, k) => [at - start, device.allocated_bytes[k] / axis.scale]),
      [end, device.allocated_bytes[device.allocated_bytes.length - 1] / axis.scale]],
    markLine: i ? undefined : { silent: true, symbol: "none", data: phases,
      lineStyle: { color: shade("soft"), type: "solid", width: 1 },
      label: { color: shade("soft"), position: "end", rotate: 0, distance: 4, align: "left" } },
  }));
  return {
    tooltip: { ...tooltip(), trigger: "axis", valueFormatter: (value) => sayBytes(value * axis.scale) },
    legend: { top: 0, left: 0, textStyle: { color: shade("soft") }, itemWidth: 34, type: "scroll" },
    grid: { left: 4, right: 24, top: 60, bottom: 26, containLabel: true },
    xAxis: { type: "value", min: 0, max: end, name: "operators run", nameLocation: "middle", nameGap: 26, ...axisStyle(), axisLabel: { color: shade("soft"), showMaxLabel: false } },
    yAxis: { type: "value", interval: axis.interval, max: Math.ceil(most / axis.scale / axis.interval) * axis.interval, ...axisStyle(), axisLabel: { color: shade("soft"), formatter: axis.label } },
    series,
  };
}
