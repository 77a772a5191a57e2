// Stop and keep: a button on the training nodes. The training ends after the step in hand, and the graph goes on with
// the LoRA so far.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const TRAINING = ["TrainLoRA", "TrainILECO", "TrainCopyMachine", "TrainDifference", "TrainADDifT"];
const LABEL = "Stop and keep";

// The server's id of the node that trains now; "2:7" for node 7 of subgraph node 2.
let running = null;

async function stop(node) {
    const isRunning = running !== null && running.split(":").pop() === String(node.id);
    const answer = isRunning
        ? await api.fetchApi("/traintrain/stop", { method: "POST", body: JSON.stringify({ node: running }) })
        : null;
    if (!answer?.ok) {
        app.extensionManager.toast.add({
            severity: "info",
            summary: LABEL,
            detail: `${node.title} is not training now.`,
            life: 4000,
        });
    }
}

app.registerExtension({
    name: "TrainTrain.Training",

    setup() {
        api.addEventListener("traintrain.step", ({ detail }) => (running = detail.node));
        api.addEventListener("executing", ({ detail }) => {
            const id = typeof detail === "object" ? detail?.node : detail;
            if (id !== running) running = null;
        });
    },

    nodeCreated(node) {
        if (TRAINING.some((name) => node.comfyClass === `TrainTrain_${name}`)) {
            const button = node.addWidget("button", LABEL, null, () => stop(node), { serialize: false });
            button.serialize = false; // the node's saved values are counted by place
            button.tooltip = "Ends the training after the step in hand; what follows goes on with the LoRA so far. Queue again to train on.";
        }
    },
});
