// Adds our HTML elements to the pack's nodes: each is the last widget of its node, is not saved, takes the height it
// needs, and follows the values of the node's other widgets.

import { app } from "../../scripts/app.js";

const OURS = "TrainTrain_"; // the ids of the pack's nodes begin with it
const MARGIN = 10; // pixels that the page leaves above and below an element

const SHEET = new URL("./traintrain.css", import.meta.url).href;

// Registers an extension whose nodeCreated is called for those of the pack's nodes whose definition `matches`, so that
// no file lists the ids of nodes.
export function registerFor(name, matches, { nodeCreated, ...hooks }) {
    const ids = new Set();
    app.registerExtension({
        name,
        ...hooks,
        beforeRegisterNodeDef(nodeType, definition) {
            if (definition.name.startsWith(OURS) && matches(definition)) ids.add(definition.name);
        },
        nodeCreated: (node) => ids.has(node.comfyClass) && nodeCreated(node),
    });
}

// Makes an HTML element with a class of ours, properties and children.
export function make(tag, name, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    if (name) element.className = `traintrain-${name}`;
    element.append(...children);
    return element;
}

// Adds the element below the node's widgets and returns a function that sets its height in pixels. The node grows or
// shrinks with it, unless it was just created or loaded: then its saved size has room for the element.
export function addElement(node, name, element, onDraw) {
    let height = 0;
    const room = () => height + 2 * MARGIN;
    const options = { serialize: false, hideOnZoom: false, hideInPanel: true, margin: MARGIN, onDraw, getMinHeight: room };
    element.prepend(make("link", "", { rel: "stylesheet", href: SHEET })); // not in the page's head, which is shared
    const widget = node.addDOMWidget(name, name, element, options); // without a largest height, it fills its node
    widget.serialize = false; // saved values are positional
    return (wanted, isNew = false) => {
        const grown = wanted - height;
        if (grown === 0) return;
        height = wanted;
        element.style.minHeight = `${height}px`;
        const least = node.computeSize()[1];
        node.setSize([node.size[0], Math.max(least, node.size[1] + (isNew ? 0 : grown))]);
        app.canvas?.setDirty(true, true);
    };
}

// Calls ours(), with the same values, after the handler that a node or widget already has.
export function after(owner, name, ours) {
    const theirs = owner[name];
    owner[name] = function (...values) {
        const answer = theirs?.apply(this, values);
        ours(...values);
        return answer;
    };
}

// Calls changed() when the value or the connection of one of these widgets changes; returns a function that checks now.
export function follow(node, names, changed) {
    let last = null;
    const look = () => {
        const now = JSON.stringify(names.map((name) => [findWidget(node, name).value, isWired(node, name)]));
        if (now === last) return;
        last = now;
        changed();
    };
    for (const name of names) after(findWidget(node, name), "callback", look);
    after(node, "onConfigure", look); // after load, undo and paste
    after(node, "onConnectionsChange", () => queueMicrotask(look)); // is called during loading, too
    return look;
}

export function findWidget(node, name) {
    return node.widgets.find((widget) => widget.name === name);
}

// Returns whether an input is connected, which overrides its widget.
export function isWired(node, name) {
    const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1;
    return slot >= 0 && node.isInputConnected(slot);
}

// Sets a widget as if the user had typed the value.
export function setWidget(node, name, value) {
    const widget = findWidget(node, name);
    widget.value = value;
    widget.callback?.(value, app.canvas, node);
    app.canvas?.setDirty(true, true);
}

// Finds a node by the server's id: "2:7" is node 7 of subgraph node 2.
export function findNode(path) {
    const ids = String(path).split(":");
    const graph = ids.slice(0, -1).reduce((graph, id) => graph?.getNodeById(id)?.subgraph, app.rootGraph ?? app.graph);
    return graph?.getNodeById(ids.at(-1)) ?? null;
}

// Returns whether the workflow with this id is on the canvas: node ids repeat between workflows.
export function isOpen(workflow) {
    return workflow === (app.rootGraph ?? app.graph)?.id;
}
