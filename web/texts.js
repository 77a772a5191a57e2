// Gives the page's texts in the language that ComfyUI's settings choose.

import { app } from "../../scripts/app.js";
import { ja } from "./texts_ja.js";
import { zh } from "./texts_zh.js";

const en = {
    folderChoose: "Choose folder",
    folderTitle: "Which folder?",
    folderHint: "Folders with images in ComfyUI's input and output folders, and those listed under training_images in extra_model_paths.yaml.",
    folderEmpty: "No folder with images found. Create one in ComfyUI's input folder and put your images there.",
    folderMore: "Not all folders are listed. For another one, type its name into the node.",
    folderRoot: "the input folder itself",
    folderClose: "Close",
    folderWired: "The connected node sets the folder.",
    folderUnlisted: "No image folder has this name.",
    folderLoading: "Loading …",
    folderFailed: "ComfyUI does not respond.",
    image: "1 image",
    images: "{count} images",
    imagesBelow: "{count} in subfolders",
    blocksAll: "All",
    blocksAllHint: "Select all blocks, or none.",
    blocksLayout: "Model shown on the map",
    blocksTrained: "last trained model",
    blocksModel: "model in this workflow",
    blocksNoModel: "Connect this node to a training node, and that to a loader that names a safetensors file of a model.",
    blocksWired: "The connected node sets the blocks.",
    blocksUnknown: "Not on this map: {tokens}",
    blocksNone: "No blocks selected",
    blocksIdle: "{id}: {type} has no layers to train here",
    blocksGroup: "{id}: select all, or none",
    blocksSize: "{id}, at 1/{scale} of the latent resolution",
    blocksFullSize: "{id}, at full latent resolution",
    blocksDeep: "inner: composition and shapes",
    blocksOuter: "outer: colors and textures",
    blocksComposition: "composition",
    blocksStyle: "style",
    blocksContent: "content",
    blocksBase: "BASE: the text encoder; only Train LoRA trains it",
    savedAs: "saved as {file}",
    trainingIdle: "The loss chart appears here during training.",
    trainingStop: "Stop and keep",
    trainingStopHint: "Stops training after the current step and runs the rest of the workflow with the LoRA as it is. That LoRA is used each time you queue, until you turn on resume_stopped to train the remaining steps.",
    trainingStopping: "stopping after this step",
    trainingNone: "{node} is not training.",
    trainingRuns: "step {step} of {steps} · loss {loss} · lr {rate} · {pace} · {left} left",
    trainingFast: "{speed} steps/s",
    networkSize: "{layers} layers, {parameters} parameters",
    trainingSkipped: "{skipped} skipped (NaN or Inf)",
    trainingHeldOut: "validation",
    trainingBest: "validation lowest at step {step}: {loss}",
    trainingSlow: "{speed} s/step",
    trainingDone: "{steps} steps in {seconds} · loss {loss}",
    trainingRecalled: "{steps} steps, loaded from disk · loss {loss}",
    trainingStopped: "stopped at step {step} of {steps} · loss {loss}",
    trainingFromState: "resumed at step {resumed_at}; steps is the total",
    trainingFromWeights: "new training from the LoRA's weights; steps counts from there",
    trainingNothing: "stopped before the first step",
    trainingNoSteps: "closed form, no steps",
    trainingLogHint: "Logarithmic loss axis",
    trainingWithout: "without · with LoRA",
    trainingBothWays: "-1 · without LoRA · 1",
    trainingStep: "step {step}",
    trainingSampleGone: "The sample is no longer on disk.",
    trainingPositive: "positive",
    preparing_results: "looking for an earlier result",
    preparing_captions: "encoding captions",
    preparing_images: "encoding images",
    preparing_model: "loading the model",
    preparing_network: "creating the LoRA",
    preparing_state: "loading the training state",
    preparing_closed_form: "computing the closed form",
    preparing_first_step: "computing the first step",
    preparing_samples: "sampling",
    preparing_validation: "measuring the validation loss",
    preparingCounted: "{what}: {done} of {total}",
    waitingNext: "waiting in the queue",
    waitingOne: "waiting: 1 training before it",
    waiting: "waiting: {count} trainings before it",
    waitingAtLeast: "waiting: at least {count} trainings before it",
    waitingStarts: "starts in about {time}",
    waitingTakes: "takes about {time}",
    waitingTimes: "queued {times} times",
    waitingAgain: "{times} more in the queue",
    minutes: "{minutes} min",
    hours: "{hours} h",
};

const TEXTS = { en, ja, zh };

// Returns the user's language, such as "ja".
export function language() {
    return (app.extensionManager.setting.get("Comfy.Locale") ?? "en").split("-")[0];
}

// Returns a text in the user's language, or in English, with {names} replaced by values.
export function t(key, values = {}) {
    const text = TEXTS[language()]?.[key] ?? TEXTS.en[key] ?? key;
    return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
