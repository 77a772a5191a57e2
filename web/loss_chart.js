// Draws losses as SVG, which stays sharp at every zoom.

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 40, right: 8, top: 8, bottom: 18 };
const SMOOTHED_STEPS = 25;
// Each can be read on the light theme and on the dark one.
const COLOURS = { now: "#2f80e0", wired: "#c96f12", before: "#7d818b", validation: "#38904c" };

// Draws runs [{ name, kind: "now" | "wired" | "before" | "validation", steps, curve: [[step, loss], ...], best }] into an
// <svg>. best: the step of a validation that gets a ring
export function drawChart(svg, runs, logarithmic) {
    const width = svg.clientWidth || 280;
    const height = svg.clientHeight || 120;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();
    const shown = runs.filter((run) => run.curve.length);
    if (!shown.length) return;
    const lines = shown.map((run) => ({ ...run, smooth: run.kind === "validation" ? run.curve : smooth(run.curve) }));
    const box = { x0: MARGIN.left, x1: width - MARGIN.right, y0: height - MARGIN.bottom, y1: MARGIN.top };
    const steps = Math.max(2, ...shown.map((run) => run.steps ?? run.curve.at(-1)[0]));
    const place = { x: (step) => box.x0 + (step / steps) * (box.x1 - box.x0), y: lossScale(lines, logarithmic, box) };
    drawAxes(svg, box, steps, place);
    for (const line of [...lines].reverse()) drawLine(svg, line, place, box);
    if (lines.length > 1) drawLegend(svg, lines, box);
}

// Returns the running mean over SMOOTHED_STEPS steps at each point of a curve whose points may be several steps apart.
function smooth(curve) {
    const perPoint = curve.length > 1 ? curve[1][0] - curve[0][0] : 1;
    const window = Math.max(1, Math.round(SMOOTHED_STEPS / perPoint));
    let sum = 0;
    return curve.map(([step, loss], i) => {
        sum += loss - (i >= window ? curve[i - window][1] : 0);
        return [step, sum / Math.min(i + 1, window)];
    });
}

function lossScale(lines, logarithmic, box) {
    const losses = lines.flatMap((line) => line.smooth.map(([, loss]) => loss));
    const positive = losses.filter((loss) => loss > 0);
    const highest = Math.max(...losses, 0) * 1.2 || 1;
    const height = box.y0 - box.y1;
    if (!logarithmic || !positive.length) {
        const scale = (loss) => box.y0 - (loss / highest) * height;
        return Object.assign(scale, { ticks: [0, highest / 2.4, highest / 1.2] });
    }
    const [low, high] = [Math.log10(Math.min(...positive) / 1.2), Math.log10(highest)];
    const scale = (loss) => box.y0 - ((Math.log10(Math.max(loss, 1e-12)) - low) / (high - low)) * height;
    const powers = [];
    for (let power = Math.ceil(low); power <= high; power++) powers.push(10 ** power);
    return Object.assign(scale, { ticks: powers.length > 1 ? powers : [10 ** low * 1.2, highest / 1.2] });
}

function drawAxes(svg, box, steps, place) {
    for (const loss of place.y.ticks) {
        const y = place.y(loss);
        add(svg, "line", { x1: box.x0, x2: box.x1, y1: y, y2: y, stroke: "currentColor", "stroke-opacity": 0.15 });
        label(svg, box.x0 - 4, y + 3, "end", loss === 0 ? "0" : loss < 0.001 ? loss.toExponential(0) : loss.toPrecision(2));
    }
    label(svg, box.x0, box.y0 + 13, "start", "0");
    label(svg, (box.x0 + box.x1) / 2, box.y0 + 13, "middle", String(Math.round(steps / 2)));
    label(svg, box.x1, box.y0 + 13, "end", String(steps));
}

function drawLine(svg, line, place, box) {
    const inside = (y) => Math.min(box.y0, Math.max(box.y1, y));
    const points = (curve) => curve.map(([step, loss]) => `${place.x(step).toFixed(1)},${inside(place.y(loss)).toFixed(1)}`).join(" ");
    const look = { fill: "none", stroke: COLOURS[line.kind], "stroke-linejoin": "round" };
    if (line.kind === "now") {
        add(svg, "polyline", { ...look, points: points(line.curve), "stroke-opacity": 0.35, "stroke-width": 1 });
    }
    add(svg, "polyline", { ...look, points: points(line.smooth), "stroke-width": line.kind === "now" ? 2 : 1.5 });
    if (line.smooth.length > 1 && line.kind !== "validation") return;
    for (const [step, loss] of line.smooth) {
        const at = { cx: place.x(step), cy: inside(place.y(loss)) };
        add(svg, "circle", { ...at, r: 2.5, fill: COLOURS[line.kind] });
        if (step === line.best) add(svg, "circle", { ...at, r: 5, fill: "none", stroke: COLOURS[line.kind], "stroke-width": 1.5 });
    }
}

function drawLegend(svg, lines, box) {
    lines.forEach((line, i) => {
        label(svg, box.x1 - 2, box.y1 + 8 + 11 * i, "end", line.name).setAttribute("fill", COLOURS[line.kind]);
    });
}

function label(svg, x, y, anchor, text) {
    const element = add(svg, "text", { x, y, "text-anchor": anchor, "font-size": 10, fill: "currentColor" });
    element.textContent = text;
    return element;
}

function add(svg, kind, attributes) {
    const element = document.createElementNS(SVG, kind);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    svg.append(element);
    return element;
}
