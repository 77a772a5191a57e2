// Finds the file of the model that a node's training uses, by the wires on the page.

const FOLDERS = { unet_name: "diffusion_models", ckpt_name: "checkpoints" }; // loader's widget -> ComfyUI's folder

function nodesAfter(node) {
    return (node.outputs ?? []).flatMap((_, slot) => node.getOutputNodes(slot) ?? []);
}

function nodeBefore(node) {
    const slot = node.inputs?.findIndex((input) => input.type === "MODEL") ?? -1;
    return slot < 0 ? null : node.getInputNode(slot);
}

// Returns { folder, name } of the file, null if no loader is found. node: a LoRA Network
export function findModelFile(node) {
    for (const training of nodesAfter(node)) {
        const passed = new Set();
        for (let each = nodeBefore(training); each && !passed.has(each); each = nodeBefore(each)) {
            passed.add(each);
            const widget = each.widgets?.find(({ name }) => name in FOLDERS);
            if (widget) return { folder: FOLDERS[widget.name], name: widget.value };
        }
    }
    return null;
}
