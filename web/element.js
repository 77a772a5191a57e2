// An element of our own as the last widget of a node: not saved, as high as it must be, and following what the node's
// other widgets say.

import { app } from "../../scripts/app.js";

const MARGIN = 10; // pixels that the page leaves above and below an element

const SHEET = new URL("./traintrain.css", import.meta.url).href;

// Makes an HTML element with a class of ours, properties and children.
export function make(tag, name, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    if (name) element.className = `traintrain-${name}`;
    element.append(...children);
    return element;
}

// Adds the element below the node's widgets and returns a function that gives it another height, in pixels. The node
// becomes as much higher or lower, unless it was just made or loaded: then it has room as it was saved.
export function addElement(node, name, element, onDraw) {
    let height = 0;
    const room = () => height + 2 * MARGIN;
    const options = { serialize: false, hideOnZoom: false, hideInPanel: true, margin: MARGIN, onDraw };
    element.prepend(make("link", "", { rel: "stylesheet", href: SHEET })); // here: the page's head is everybody's
    const widget = node.addDOMWidget(name, name, element, { ...options, getMinHeight: room, getMaxHeight: room });
    widget.serialize = false; // the node's saved values are counted by place
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

// Calls a function of ours after one of the node's or of a widget's.
export function after(owner, name, ours) {
    const theirs = owner[name];
    owner[name] = function (...values) {
        const answer = theirs?.apply(this, values);
        ours();
        return answer;
    };
}

// Calls changed() whenever one of these widgets has another value or another wire; returns a function that looks now.
export function follow(node, names, changed) {
    let last = null;
    const look = () => {
        const now = JSON.stringify(names.map((name) => [findWidget(node, name).value, isWired(node, name)]));
        if (now === last) return;
        last = now;
        changed();
    };
    for (const name of names) after(findWidget(node, name), "callback", look);
    after(node, "onConfigure", look); // a workflow is loaded, undone or pasted
    after(node, "onConnectionsChange", () => queueMicrotask(look)); // comes in the midst of loading, too
    return look;
}

export function findWidget(node, name) {
    return node.widgets.find((widget) => widget.name === name);
}

// Tells whether a value comes by wire, so that the widget's own does not count.
export function isWired(node, name) {
    return (node.inputs?.find((input) => input.name === name)?.link ?? null) !== null;
}

// Writes a value as if the user had typed it.
export function setWidget(node, name, value) {
    const widget = findWidget(node, name);
    widget.value = value;
    widget.callback?.(value, app.canvas, node);
    app.canvas?.setDirty(true, true);
}

// Finds the node that the server calls "2:7": node 7 of subgraph node 2.
export function findNode(path) {
    const ids = String(path).split(":");
    const graph = ids.slice(0, -1).reduce((graph, id) => graph?.getNodeById(id)?.subgraph, app.rootGraph ?? app.graph);
    return graph?.getNodeById(ids.at(-1)) ?? null;
}

// Tells whether a workflow, by its id, is the one on the canvas: nodes of others may have the same ids.
export function isOpen(workflow) {
    return workflow === (app.rootGraph ?? app.graph).id;
}
