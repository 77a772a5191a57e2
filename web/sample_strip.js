// Shows the samples of one step: an image per prompt, without and with the LoRA, or for a slider with it at -1 and at 1.

import { api } from "../../scripts/api.js";
import { make } from "./node_element.js";
import { t } from "./texts.js";

const HEIGHT = 170; // pixels, for one prompt
const ROW = 95; // pixels of each row of two prompts, if there are several
const ROWS = 3; // more are scrolled to

export class SampleStrip {
    element;

    #all = []; // { step, filename, subfolder, prompt, both_ways }, by step
    #chosen = null; // the step that is shown; null for the newest
    #drawn = null;
    #images = make("div", "pairs");
    #page = make("span");
    #order = make("span"); // what is beside what

    constructor() {
        const turn = (text, by) => make("button", "", { type: "button", textContent: text, onclick: () => this.#turn(by) });
        const pages = make("span", "pages", {}, turn("‹", -1), this.#page, turn("›", 1));
        const foot = make("div", "foot", {}, this.#order, pages);
        this.element = make("div", "samples", {}, this.#images, foot);
    }

    // Shows these samples, and returns the height in pixels that they need.
    show(samples) {
        this.#all = samples;
        this.element.hidden = !samples.length;
        if (!samples.length) return 0;
        const step = this.#steps.includes(this.#chosen) ? this.#chosen : this.#steps.at(-1);
        const shown = samples.filter((each) => each.step === step);
        const several = shown.length > 1;
        const height = several ? HEIGHT - ROW + ROW * Math.min(ROWS, Math.ceil(shown.length / 2)) : HEIGHT;
        const key = JSON.stringify(shown);
        if (key !== this.#drawn) this.#images.replaceChildren(...shown.map((each) => drawPair(each, several)));
        this.#drawn = key;
        this.#images.classList.toggle("traintrain-several", several);
        this.element.style.flexBasis = `${height - 5}px`;
        this.#order.textContent = t(shown[0].both_ways ? "trainingBothWays" : "trainingWithout");
        this.#page.textContent = t("trainingStep", { step });
        return height;
    }

    get #steps() {
        return [...new Set(this.#all.map(({ step }) => step))];
    }

    #turn(by) {
        const steps = this.#steps;
        const at = steps.includes(this.#chosen) ? steps.indexOf(this.#chosen) : steps.length - 1;
        const next = Math.min(steps.length - 1, Math.max(0, at + by));
        this.#chosen = next === steps.length - 1 ? null : steps[next];
        this.show(this.#all);
    }
}

function drawPair({ filename, subfolder, prompt }, named) {
    const url = api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type: "output" })}`);
    const image = make("img", "", { src: url, onerror: () => (image.alt = t("trainingSampleGone")) });
    if (!named) return image;
    const name = prompt || t("trainingPositive");
    return make("figure", "pair", { title: name }, image, make("figcaption", "", {}, name));
}
