// Shows metrics, loss chart and samples below the inputs of a training node. The workflow saves all of it.

import { api } from "../../scripts/api.js";
import { drawChart } from "./loss_chart.js";
import { addElement, after, make } from "./node_element.js";
import { t } from "./texts.js";

const PROPERTY = "traintrain"; // of a node: { logarithmic, runs }, with the newest run last
const RUNS = 4;
const POINTS_OF_EARLIER = 60;
const ORIGINS = { state: "trainingFromState", weights: "trainingFromWeights" }; // what of a connected LoRA it starts from
const HEIGHTS = { chart: 150, samples: 170 }; // pixels; the chart's includes the metrics above it

export class TrainingPanel {
    // The last report of the training in progress; null if there is none.
    running = null;

    #node;
    #setHeight;
    #sample = null; // the step whose sample is shown; null for the newest

    #metrics = make("div", "metrics");
    #log = make("button", "log", { type: "button", textContent: "log", title: t("trainingLogHint"), onclick: () => this.#toggleLog() });
    #chart = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    #image = make("img", "", { onerror: () => (this.#image.alt = t("trainingSampleGone")) });
    #page = make("span");
    #samples;

    constructor(node) {
        this.#node = node;
        this.#chart.classList.add("traintrain-chart");
        const turn = (text, by) => make("button", "", { type: "button", textContent: text, onclick: () => this.#turn(by) });
        const pages = make("span", "pages", {}, turn("‹", -1), this.#page, turn("›", 1));
        const foot = make("div", "foot", {}, make("span", "", {}, t("trainingWithout")), pages);
        this.#samples = make("div", "samples", {}, this.#image, foot);
        const line = make("div", "line", {}, this.#metrics, this.#log);
        this.#setHeight = addElement(node, "training", make("div", "training", {}, line, this.#chart, this.#samples));
        const observer = new ResizeObserver(() => this.#drawChart());
        after(node, "onAdded", () => observer.observe(this.#chart));
        after(node, "onRemoved", () => observer.disconnect());
        after(node, "onConfigure", () => this.#draw());
        this.#draw();
    }

    // Takes a report of the server about a training of this node.
    show(training) {
        this.running = training.running ? training : null;
        const { workflow, node, running, ...run } = training;
        run.curve = run.curve.map(([step, loss]) => [step, Number(loss.toPrecision(4))]);
        const earlier = this.#runs.filter((known) => known.run !== run.run).map(thin);
        this.#data = { ...this.#data, runs: [...earlier, run].slice(-RUNS) };
        this.#draw();
    }

    get #data() {
        return this.#node.properties?.[PROPERTY] ?? {};
    }

    set #data(data) {
        this.#node.properties = { ...this.#node.properties, [PROPERTY]: data };
    }

    get #runs() {
        return readRuns(this.#node);
    }

    get #run() {
        return this.#runs.at(-1);
    }

    #draw() {
        this.#metrics.textContent = this.#run ? describe(this.#run, this.running) : t("trainingIdle");
        this.#drawChart();
        this.#drawSample();
        this.#setHeight(HEIGHTS.chart + (this.#run?.samples.length ? HEIGHTS.samples : 0), true); // grows if needed
    }

    #drawChart() {
        const now = this.#run;
        const before = this.#runs.slice(0, -1).map((run) => ({ ...run, kind: "before" }));
        const held = Array.isArray(now?.validation) && now.validation.length ? [{ name: t("trainingHeldOut"), kind: "validation", steps: now.steps, curve: now.validation }] : [];
        const runs = now ? [{ ...now, kind: "now" }, ...held, ...this.#wired(), ...before.reverse()] : [];
        this.#log.classList.toggle("traintrain-on", Boolean(this.#data.logarithmic));
        this.#log.hidden = !now;
        const named = runs.map((run) => ({ ...run, name: [run.name, rate(run.highest_learning_rate)].filter(Boolean).join(" · ") }));
        drawChart(this.#chart, named, this.#data.logarithmic);
    }

    // The last run of the training whose LoRA this one is trained on, such as a copy machine.
    #wired() {
        const slot = this.#node.inputs?.findIndex((input) => input.type === "LORA_MODEL" && input.name !== "lora") ?? -1;
        const origin = slot < 0 ? null : this.#node.getInputNode?.(slot);
        return readRuns(origin).slice(-1).map((run) => ({ ...run, kind: "wired" }));
    }

    #toggleLog() {
        this.#data = { ...this.#data, logarithmic: !this.#data.logarithmic };
        this.#drawChart();
    }

    #drawSample() {
        const samples = this.#run?.samples ?? [];
        this.#samples.hidden = !samples.length;
        if (!samples.length) return;
        const { filename, subfolder, step } = samples.find((each) => each.step === this.#sample) ?? samples.at(-1);
        const url = api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type: "output" })}`);
        if (this.#image.getAttribute("src") !== url) this.#image.src = url;
        this.#page.textContent = t("trainingStep", { step });
    }

    #turn(by) {
        const steps = this.#run.samples.map(({ step }) => step);
        const at = steps.includes(this.#sample) ? steps.indexOf(this.#sample) : steps.length - 1;
        const next = Math.min(steps.length - 1, Math.max(0, at + by));
        this.#sample = next === steps.length - 1 ? null : steps[next];
        this.#drawSample();
    }
}

// Returns the runs in a node's properties, which come from a file that anyone may have written.
function readRuns(node) {
    const runs = node?.properties?.[PROPERTY]?.runs;
    return Array.isArray(runs) ? runs.filter((run) => Array.isArray(run?.curve) && Array.isArray(run.samples)) : [];
}

function describe(run, running) {
    const loss = (run.smoothed_loss ?? run.loss)?.toPrecision(3);
    const values = { ...run, loss, rate: rate(run.learning_rate), seconds: duration(run.seconds) };
    const skipped = run.skipped ? ` · ${t("trainingSkipped", run)}` : "";
    const held = run.best_step ? ` · ${t("trainingBest", { loss: run.best_loss?.toPrecision(3), step: run.best_step })}` : "";
    const more = skipped + held + (ORIGINS[run.origin] ? ` · ${t(ORIGINS[run.origin], run)}` : "");
    if (running) return t("trainingRuns", { ...values, pace: pace(run.steps_per_second), left: duration(run.seconds_left) }) + more;
    if (!run.step) return t(run.steps ? "trainingNothing" : "trainingNoSteps");
    return t(run.step < run.steps ? "trainingStopped" : run.seconds ? "trainingDone" : "trainingRecalled", values) + more;
}

function rate(learningRate) {
    return learningRate?.toExponential(1).replace("-", "\u2011"); // a non-breaking hyphen
}

function pace(speed) {
    if (!speed) return "…";
    return speed >= 1 ? t("trainingFast", { speed: speed.toFixed(1) }) : t("trainingSlow", { speed: (1 / speed).toFixed(1) });
}

function duration(seconds) {
    if (seconds === undefined) return "…";
    const whole = Math.round(seconds);
    const [hours, ...rest] = [whole / 3600, (whole / 60) % 60, whole % 60].map((part) => String(Math.floor(part)).padStart(2, "0"));
    return (hours === "00" ? rest : [hours, ...rest]).join(":");
}

// Reduces an earlier run to few points, so that the workflow stays small.
function thin(run) {
    const every = Math.ceil(run.curve.length / POINTS_OF_EARLIER);
    return { ...run, curve: run.curve.filter((_, i) => (run.curve.length - 1 - i) % every === 0), samples: [], validation: [] };
}
