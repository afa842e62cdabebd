// Node: the engine whose API this is. Here the host is JavaScript, and as fast as the guest.
import { readFileSync } from "node:fs";

const [directory, seconds] = process.argv.slice(2);
const IMPORTS = 1000, FIB = 16;
const guest = (name) => readFileSync(`${directory}/${name}.wasm`);

function run(action, count) {
  const started = performance.now();
  for (let i = 0; i < count; i++) action();
  return (performance.now() - started) / 1000;
}

function timed(action) {
  let count = 1;
  while (run(action, count) < Number(seconds)) count *= 2;
  const taken = [];
  for (let i = 0; i < 5; i++) taken.push(run(action, count) / count);
  return taken.sort((a, b) => a - b)[2];
}

const plain = new WebAssembly.Module(guest("plain"));
const { add, fib } = new WebAssembly.Instance(plain).exports;
const { loop } = new WebAssembly.Instance(
  new WebAssembly.Module(guest("caller")), { host: { f: (x) => x } }).exports;
if (add(1, 2) !== 3 || fib(FIB) !== 987) throw new Error("wrong results");

// Equal bytes are compiled once: each round has another custom section behind them.
const large = guest("large");
let round = 0;
function compile() {
  const tail = Buffer.from([0, 5, 0, 0, 0, 0, 0]);
  tail.writeUInt32LE(round++, 3);
  return new WebAssembly.Module(Buffer.concat([large, tail]));
}

console.log(JSON.stringify({
  version: process.version,
  call: timed(() => add(1, 2)),
  import: timed(() => loop(IMPORTS)) / IMPORTS,
  fib: timed(() => fib(FIB)),
  instantiate: timed(() => new WebAssembly.Instance(plain)),
  compile: timed(compile),
}));
