// The training nodes on the page: how far the training is, the curve of its loss, samples, and Stop and keep.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { TrainingPanel } from "./panel.js";
import { t } from "./texts.js";

const TRAINING = ["TrainLoRA", "TrainILECO", "TrainCopyMachine", "TrainDifference", "TrainADDifT"];
const EVENTS = ["traintrain.step", "traintrain.end"];

const panels = new WeakMap(); // node -> its panel

function isTraining(node) {
    return TRAINING.some((name) => node.comfyClass === `TrainTrain_${name}`);
}

// Finds the node of a server's id: "7", or "2:7" for node 7 inside the subgraph of node 2.
function findNode(id) {
    let graph = app.rootGraph ?? app.graph;
    const path = String(id).split(":");
    for (const part of path.slice(0, -1)) graph = graph?.getNodeById(Number(part))?.subgraph;
    return graph?.getNodeById(Number(path.at(-1)));
}

// Shows a training on its node, if it is of the workflow that is open.
function show(training) {
    if (training.workflow !== (app.rootGraph ?? app.graph).id) return;
    const node = findNode(training.node);
    if (node && isTraining(node)) panels.get(node)?.show(training);
}

async function showWhatRuns() {
    const answer = await api.fetchApi("/traintrain/trainings", { method: "POST" });
    if (answer.ok) (await answer.json()).trainings.forEach(show);
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
    name: "TrainTrain.Training",

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

    loadedGraphNode(node) {
        panels.get(node)?.restore();
    },

    afterConfigureGraph: showWhatRuns,
});
