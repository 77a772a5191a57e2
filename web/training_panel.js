// Shows metrics, loss chart and samples below the inputs of a training node. The workflow saves all of it.

import { drawChart } from "./loss_chart.js";
import { addElement, after, make } from "./node_element.js";
import { SampleStrip } from "./sample_strip.js";
import { t } from "./texts.js";
import { describe, rate } from "./training_words.js";

const PROPERTY = "traintrain"; // of a node: { logarithmic, runs }, with the newest run last
const RUNS = 4;
const POINTS_OF_EARLIER = 60;
const HEIGHT = 150; // pixels of the chart and the metrics above it

export class TrainingPanel {
    // The last report of the training in progress; null if there is none.
    running = null;

    #node;
    #setHeight;
    #preparing = null; // what the server does besides steps: { stage, done, total }
    #stopping = false; // whether the training in progress ends after its step
    #waiting = null; // what is before this training in the queue: see nodes/waiting.py

    #metrics = make("div", "metrics");
    #log = make("button", "log", { type: "button", textContent: "log", title: t("trainingLogHint"), onclick: () => this.#toggleLog() });
    #chart = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    #samples = new SampleStrip();

    constructor(node) {
        this.#node = node;
        this.#chart.classList.add("traintrain-chart");
        const line = make("div", "line", {}, this.#metrics, this.#log);
        this.#setHeight = addElement(node, "training", make("div", "training", {}, line, this.#chart, this.#samples.element));
        const observer = new ResizeObserver(() => this.#drawChart());
        after(node, "onAdded", () => observer.observe(this.#chart));
        after(node, "onRemoved", () => observer.disconnect());
        after(node, "onConfigure", () => this.#draw());
        this.#draw();
    }

    // Takes a report of the server about a training of this node.
    show(training) {
        this.#begin();
        this.running = training.running ? training : null;
        if (!this.running) this.#stopping = false;
        this.#preparing = null;
        const { workflow, node, running, ...run } = training;
        run.curve = run.curve.map(([step, loss]) => [step, Number(loss.toPrecision(4))]);
        const earlier = this.#runs.filter((known) => known.run !== run.run).map(thin);
        this.#data = { ...this.#data, runs: [...earlier, run].slice(-RUNS) };
        this.#draw();
    }

    // Takes a report about what is done before the first step of a training of this node, or between steps.
    prepare(preparation) {
        this.#begin();
        this.#preparing = preparation.stage ? preparation : null;
        this.#drawWords();
    }

    // Shows that the training in progress has been asked to stop: it still ends its step, and its samples.
    stop() {
        this.#stopping = Boolean(this.running); // it may have ended meanwhile
        this.#drawWords();
    }

    // Takes a report about a training of this node that waits in the queue, or null if none does.
    wait(waiting) {
        this.#waiting = waiting;
        this.#drawWords();
    }

    // Forgets that a training waits when it begins; the next report says whether more do.
    #begin() {
        if (!this.running && !this.#preparing) this.#waiting = null;
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
        this.#drawWords();
        this.#drawChart();
        const height = this.#samples.show(this.#run?.samples ?? []);
        this.#setHeight(HEIGHT + height, true); // grows if needed
    }

    #drawWords() {
        this.#metrics.textContent = describe(this.#run, this.running, this.#preparing, this.#waiting, this.#stopping);
    }

    #drawChart() {
        const now = this.#run;
        const before = this.#runs.slice(0, -1).map((run) => ({ ...run, kind: "before" }));
        const held = Array.isArray(now?.validation) && now.validation.length ? [{ name: t("trainingHeldOut"), kind: "validation", steps: now.steps, curve: now.validation, best: now.best_step }] : [];
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
}

// Returns the runs in a node's properties, which come from a file that anyone may have written.
function readRuns(node) {
    const runs = node?.properties?.[PROPERTY]?.runs;
    return Array.isArray(runs) ? runs.filter((run) => Array.isArray(run?.curve) && Array.isArray(run.samples)) : [];
}

// Reduces an earlier run to few points, so that the workflow stays small.
function thin(run) {
    const every = Math.ceil(run.curve.length / POINTS_OF_EARLIER);
    return { ...run, curve: run.curve.filter((_, i) => (run.curve.length - 1 - i) % every === 0), samples: [], validation: [] };
}
