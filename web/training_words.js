// Says in a line what a training does.

import { t } from "./texts.js";

const ORIGINS = { state: "trainingFromState", weights: "trainingFromWeights" }; // what of a connected LoRA it starts from

// Describes a training node: its last run, whether that is running, what is done besides steps, what waits, and whether
// it has been asked to stop.
export function describe(run, running, preparing, waiting, stopping) {
    const doing = preparing ? describeStage(preparing) : null;
    const ends = stopping ? t("trainingStopping") : null;
    if (running) return [ends, describeRun(run, running), doing, queuedAgain(waiting)].filter(Boolean).join(" · ");
    if (doing) return [doing, queuedAgain(waiting)].filter(Boolean).join(" · ");
    if (waiting) return describeWaiting(waiting);
    return run ? describeRun(run, running) : t("trainingIdle");
}

function describeStage({ stage, done, total }) {
    const what = t(`preparing_${stage}`);
    return total > 1 ? t("preparingCounted", { what, done, total }) : what;
}

function describeWaiting({ before, at_least, seconds, own, times }) {
    const key = before === 0 ? "waitingNext" : at_least ? "waitingAtLeast" : before === 1 ? "waitingOne" : "waiting";
    const starts = before && seconds !== null ? t("waitingStarts", { time: roughly(seconds) }) : null;
    const takes = own === null ? null : t("waitingTakes", { time: roughly(own) });
    return [t(key, { count: before }), starts, takes, times > 1 ? t("waitingTimes", { times }) : null].filter(Boolean).join(" · ");
}

function queuedAgain(waiting) {
    return waiting && t("waitingAgain", waiting);
}

function describeRun(run, running) {
    const loss = (run.smoothed_loss ?? run.loss)?.toPrecision(3);
    const values = { ...run, loss, rate: rate(run.learning_rate), seconds: duration(run.seconds) };
    const skipped = run.skipped ? ` · ${t("trainingSkipped", run)}` : "";
    const held = run.best_step ? ` · ${t("trainingBest", { loss: run.best_loss?.toPrecision(3), step: run.best_step })}` : "";
    const size = run.parameters ? ` · ${sayNetwork(run)}` : ""; // with a LoRA Network, that node says it
    const more = skipped + held + (ORIGINS[run.origin] ? ` · ${t(ORIGINS[run.origin], run)}` : "") + size;
    if (running) return t("trainingRuns", { ...values, pace: pace(run.steps_per_second), left: duration(run.seconds_left) }) + more;
    if (!run.step) return t(run.steps ? "trainingNothing" : "trainingNoSteps");
    return t(run.step < run.steps ? "trainingStopped" : run.seconds ? "trainingDone" : "trainingRecalled", values) + more;
}

// Says how large a LoRA is.
export function sayNetwork({ layers, parameters }) {
    return t("networkSize", { layers, parameters: parameters.toLocaleString("en") });
}

export function rate(learningRate) {
    return learningRate?.toExponential(1).replace("-", "\u2011"); // a non-breaking hyphen
}

function pace(speed) {
    if (!speed) return "…";
    return speed >= 1 ? t("trainingFast", { speed: speed.toFixed(1) }) : t("trainingSlow", { speed: (1 / speed).toFixed(1) });
}

function duration(seconds) {
    if (seconds === undefined) return "…";
    const whole = Math.round(seconds);
    const [hours, ...rest] = [whole / 3600, (whole / 60) % 60, whole % 60].map((part) => String(Math.floor(part)).padStart(2, "0"));
    return (hours === "00" ? rest : [hours, ...rest]).join(":");
}

// Returns a time that is only estimated, in minutes or hours.
function roughly(seconds) {
    const minutes = Math.max(1, Math.round(seconds / 60));
    return minutes < 100 ? t("minutes", { minutes }) : t("hours", { hours: (minutes / 60).toFixed(1) });
}
