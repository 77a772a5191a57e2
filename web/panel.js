// What a training node shows below its inputs: figures, chart and samples. All of it is kept in the workflow.

import { api } from "../../scripts/api.js";
import { drawChart } from "./chart.js";
import { t } from "./texts.js";

const PROPERTY = "traintrain"; // of a node: { logarithmic, runs }, the newest run last
const RUNS = 4;
const POINTS_OF_EARLIER = 60;
const CHART_HEIGHT = 150; // pixels, with the figures above it
const SAMPLES_HEIGHT = 170;

const style = document.createElement("link");
style.rel = "stylesheet";
style.href = new URL("./training.css", import.meta.url).href;
document.head.append(style);

export class TrainingPanel {
    // The training that goes on now, as the server told of it last; null when none does.
    running = null;

    #node;
    #sample = null; // the one that is looked at; null for the newest
    #parts = {};

    constructor(node) {
        this.#node = node;
        const element = this.#build();
        const widget = node.addDOMWidget("training", "TRAINTRAIN_TRAINING", element, {
            serialize: false,
            hideOnZoom: false,
            getMinHeight: () => this.#height(),
            getMaxHeight: () => this.#height(),
        });
        widget.serialize = false;
        new ResizeObserver(() => this.#drawChart()).observe(this.#parts.chart);
        this.#draw();
    }

    // Takes in what the server tells of a training.
    show(training) {
        this.running = training.running ? training : null;
        const { workflow, node, running, ...run } = training;
        run.curve = run.curve.map(([step, loss]) => [step, Number(loss.toPrecision(4))]);
        const earlier = this.#runs.filter((known) => known.run !== run.run).map(thin);
        this.#data = { ...this.#data, runs: [...earlier, run].slice(-RUNS) };
        this.#draw();
    }

    // Draws what came with the workflow.
    restore() {
        this.#draw();
    }

    get #data() {
        return this.#node.properties?.[PROPERTY] ?? {};
    }

    set #data(data) {
        this.#node.properties = { ...this.#node.properties, [PROPERTY]: data };
    }

    get #runs() {
        const { runs } = this.#data; // from a file that anyone may have made
        return Array.isArray(runs) ? runs.filter((run) => Array.isArray(run?.curve) && Array.isArray(run.samples)) : [];
    }

    get #run() {
        return this.#runs.at(-1);
    }

    get #samples() {
        return this.#run?.samples ?? [];
    }

    #build() {
        const element = make("div", "traintrain-panel");
        const head = make("div", "traintrain-head", element);
        this.#parts.figures = make("div", "traintrain-figures", head);
        this.#parts.log = make("button", "traintrain-log", head, "log");
        this.#parts.log.title = t("trainingLogHint");
        this.#parts.log.addEventListener("click", () => {
            this.#data = { ...this.#data, logarithmic: !this.#data.logarithmic };
            this.#drawChart();
        });
        this.#parts.chart = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        this.#parts.chart.classList.add("traintrain-chart");
        element.append(this.#parts.chart);
        this.#buildSamples(element);
        return element;
    }

    #buildSamples(element) {
        const samples = (this.#parts.samples = make("div", "traintrain-samples", element));
        this.#parts.image = make("img", "", samples);
        this.#parts.image.addEventListener("error", () => (this.#parts.image.alt = t("trainingSampleGone")));
        const foot = make("div", "traintrain-foot", samples);
        make("span", "", foot, t("trainingWithout"));
        const pages = make("span", "", foot);
        make("button", "", pages, "‹").addEventListener("click", () => this.#turn(-1));
        this.#parts.page = make("span", "", pages);
        make("button", "", pages, "›").addEventListener("click", () => this.#turn(1));
    }

    #height() {
        return CHART_HEIGHT + (this.#samples.length ? SAMPLES_HEIGHT : 0);
    }

    #draw() {
        this.#parts.figures.textContent = this.#run ? figures(this.#run, this.running) : t("trainingIdle");
        this.#drawChart();
        this.#drawSample();
        const [width, height] = this.#node.computeSize();
        const [nodeWidth, nodeHeight] = this.#node.size;
        if (height > nodeHeight) this.#node.setSize([Math.max(width, nodeWidth), height]);
    }

    #drawChart() {
        const now = this.#run;
        const before = this.#runs.slice(0, -1).map((run) => ({ ...run, kind: "before" }));
        const runs = now ? [{ ...now, kind: "now" }, ...this.#wired(), ...before.reverse()] : [];
        this.#parts.log.classList.toggle("on", Boolean(this.#data.logarithmic));
        this.#parts.log.hidden = !now;
        drawChart(this.#parts.chart, runs, this.#data.logarithmic);
    }

    // The run of the training whose LoRA this one takes, such as a copy machine: two passes in one chart.
    #wired() {
        const slot = this.#node.inputs?.findIndex((input) => input.name === "copy_machine") ?? -1;
        const runs = slot < 0 ? null : this.#node.getInputNode?.(slot)?.properties?.[PROPERTY]?.runs;
        return Array.isArray(runs) && runs.length ? [{ ...runs.at(-1), kind: "wired" }] : [];
    }

    #drawSample() {
        const samples = this.#samples;
        this.#parts.samples.hidden = !samples.length;
        if (!samples.length) return;
        const sample = samples.find(({ step }) => step === this.#sample) ?? samples.at(-1);
        const query = new URLSearchParams({ filename: sample.filename, subfolder: sample.subfolder, type: "output" });
        const url = api.apiURL(`/view?${query}`);
        if (this.#parts.image.getAttribute("src") !== url) this.#parts.image.src = url;
        this.#parts.page.textContent = t("trainingStep", { step: sample.step });
    }

    #turn(by) {
        const steps = this.#samples.map(({ step }) => step);
        const at = steps.includes(this.#sample) ? steps.indexOf(this.#sample) : steps.length - 1;
        const next = Math.min(steps.length - 1, Math.max(0, at + by));
        this.#sample = next === steps.length - 1 ? null : steps[next];
        this.#drawSample();
    }
}

function figures(run, running) {
    const loss = (run.smoothed_loss ?? run.loss)?.toPrecision(3);
    const values = { ...run, loss, rate: run.learning_rate?.toExponential(1), seconds: duration(run.seconds) };
    if (running) {
        const speed = run.steps_per_second;
        const pace = speed >= 1 || !speed ? t("trainingFast", { speed: speed?.toFixed(1) ?? "…" }) : t("trainingSlow", { speed: (1 / speed).toFixed(1) });
        return t("trainingRuns", { ...values, pace, left: duration(run.seconds_left) });
    }
    if (!run.step) return t("trainingNothing");
    return t(run.step < run.steps ? "trainingStopped" : run.seconds ? "trainingDone" : "trainingRecalled", values);
}

function duration(seconds) {
    if (seconds === undefined) return "…";
    const whole = Math.round(seconds);
    const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60].map((part) => String(part).padStart(2, "0"));
    return (parts[0] === "00" ? parts.slice(1) : parts).join(":");
}

// Leaves fewer points of an earlier run: the workflow shall stay small.
function thin(run) {
    const every = Math.ceil(run.curve.length / POINTS_OF_EARLIER);
    return { ...run, curve: run.curve.filter((_, i) => (run.curve.length - 1 - i) % every === 0), samples: [] };
}

function make(tag, className, parent, text = "") {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.textContent = text;
    parent?.append(element);
    return element;
}
