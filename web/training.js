// The training nodes on the page: how far the training is, the curve of its loss, samples, and Stop and keep.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { findNode, isOpen } from "./element.js";
import { TrainingPanel } from "./panel.js";
import { t } from "./texts.js";

const TRAINING = ["TrainLoRA", "TrainILECO", "TrainCopyMachine", "TrainDifference", "TrainADDifT"];
const EVENTS = ["traintrain.step", "traintrain.end"];

const panels = new WeakMap(); // node -> its panel

function isTraining(node) {
    return TRAINING.some((name) => node.comfyClass === `TrainTrain_${name}`);
}

function show(training) {
    if (isOpen(training.workflow)) panels.get(findNode(training.node))?.show(training);
}

// Shows what went on before the page, or the workflow, was opened.
async function catchUp() {
    const answer = await api.fetchApi("/traintrain/trainings", { method: "POST" }).catch(() => null);
    if (answer?.ok) (await answer.json()).trainings.forEach(show);
}

async function stop(node) {
    const training = panels.get(node)?.running;
    const answer = training
        ? await api.fetchApi("/traintrain/stop", { method: "POST", body: JSON.stringify({ node: training.node }) })
        : null;
    if (!answer?.ok) {
        const detail = t("trainingNone", { node: node.title });
        app.extensionManager.toast.add({ severity: "info", summary: t("trainingStop"), detail, life: 4000 });
    }
}

app.registerExtension({
    name: "traintrain.Training",

    setup() {
        for (const event of EVENTS) api.addEventListener(event, ({ detail }) => show(detail));
    },

    nodeCreated(node) {
        if (!isTraining(node)) return;
        const button = node.addWidget("button", "stop_and_keep", null, () => stop(node), { serialize: false });
        button.label = t("trainingStop");
        button.tooltip = t("trainingStopHint");
        button.serialize = false; // the node's saved values are counted by place
        panels.set(node, new TrainingPanel(node));
    },

    afterConfigureGraph: catchUp,
});
