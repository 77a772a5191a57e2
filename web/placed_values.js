// Gives the inputs of a node that the user places the value that is meant for new nodes: the option `placed` of an input.
// The input's default stays what a graph means that was saved before there was this input.

import { after, findWidget, registerFor } from "./node_element.js";

const placed = new Map(); // id of a node -> [[input, value], ...]

function placedValues({ input }) {
    const inputs = Object.entries({ ...input.required, ...input.optional });
    return inputs.filter(([, spec]) => spec[1]?.placed !== undefined).map(([name, spec]) => [name, spec[1].placed]);
}

registerFor("traintrain.PlacedValues", (definition) => {
    placed.set(definition.name, placedValues(definition));
    return placed.get(definition.name).length > 0;
}, {
    nodeCreated(node) {
        let isNew = true;
        const isSaved = () => (isNew = false); // it has values, or was saved without them
        after(node, "onConfigure", isSaved); // of a workflow, or copied
        for (const widget of node.widgets) after(widget, "callback", isSaved); // of a graph in API format
        after(node, "onAdded", () => {
            // A graph that is opened adds a node first, and gives it its values at once.
            queueMicrotask(() => {
                if (isNew) for (const [name, value] of placed.get(node.comfyClass)) findWidget(node, name).value = value;
                isNew = false;
            });
        });
    },
});
