// SPDX-License-Identifier: LGPL-2.1-or-later
// What node's memory is made of: compiled code, old and new space, Buffers, typed arrays
// that grow, threads with heaps of their own, children. Each round checks its own results
// and adds to a digest, which is the same in each run with as many rounds. Without a
// second argument rounds go on for so many seconds, and only the checks count.
//
// usage: node node-work.js rounds N | node node-work.js seconds N
'use strict';
const crypto = require('crypto');
const zlib = require('zlib');
const { Worker, isMainThread, parentPort, workerData } = require('worker_threads');

function fail(what) {
	console.log('WRONG: ' + what);
	process.exit(1);
}

function hot(n, seed) {
	let a = seed | 0, s = 0;
	for (let i = 0; i < n; i++) {
		a = (Math.imul(a, 1664525) + 1013904223) | 0;
		s = (s + (a >>> 9) * 0.5) % 1000003;
	}
	return s;
}

const old = new Map();
const buffers = [];
function objects(round, hash) {
	for (let i = 0; i < 20000; i++)
		old.set(i, { n: i, text: 'object ' + i % 100, list: [i, i + 1, round] });
	let sum = 0;
	for (const [k, v] of old) {
		if (v.n !== k || v.list[1] !== k + 1 || v.list[2] !== round)
			fail('object ' + k);
		sum += v.text.length;
	}
	hash.update(String(sum));
}

function arrays(round, hash) {
	if (buffers.length < 40)
		for (let i = 0; i < 8; i++)
			buffers.push(Buffer.alloc(200000, 'samepage ' + i));
	const one = buffers[round % buffers.length];
	one.writeUInt32LE(round, (round * 4096) % 196608);
	for (const [i, b] of buffers.entries())
		if (b.length !== 200000 || b[199999] !== Buffer.alloc(200000, 'samepage ' + i % 8)[199999])
			fail('buffer ' + i);
	let grown = new Float64Array(1000);
	for (let i = 0; i < 5; i++) {
		const next = new Float64Array(grown.length * 4);
		next.set(grown);
		next[next.length - 1] = i + 1;
		grown = next;
	}
	hash.update(Buffer.from(grown.buffer));
	const packed = zlib.deflateSync(Buffer.concat(buffers.slice(0, 8)));
	hash.update(zlib.inflateSync(packed));
	const compiled = new Function('a', 'let s = ' + round +
		'; for (let i = 0; i < 20000; i++) s = (s * 31 + a + i) % 65537; return s;');
	hash.update(String(compiled(7)) + String(hot(300000, round)));
}

function threads(round) {
	return Promise.all([1, 2].map((n) => new Promise((done) => {
		const w = new Worker(__filename, { workerData: n * 1000 + round });
		let answer;
		w.on('message', (m) => { answer = m; });
		w.on('error', (e) => fail('thread: ' + e));
		w.on('exit', () => done(answer));
	})));
}

async function main() {
	const byRounds = process.argv[2] === 'rounds', n = Number(process.argv[3]);
	const begin = Date.now();
	const hash = crypto.createHash('sha256');
	let round = 0;
	for (; byRounds ? round < n : Date.now() - begin < n * 1000; round++) {
		objects(round, hash);
		arrays(round, hash);
		const answers = await threads(round);
		answers.forEach((a, i) => {
			if (a !== hot(200000, (i + 1) * 1000 + round))
				fail('thread ' + i + ' of round ' + round);
			hash.update(String(a));
		});
		await new Promise((done) => setTimeout(done, 150));
	}
	console.log(byRounds ? round + ' rounds, ' + hash.digest('hex') : round > 0 ? 'right' : 'none');
}

if (isMainThread) {
	main();
} else {
	const heap = [];
	for (let i = 0; i < 5000; i++)
		heap.push({ i, s: 'x'.repeat(i % 50) });
	for (const [i, o] of heap.entries())
		if (o.i !== i || o.s.length !== i % 50)
			fail('heap of a thread');
	parentPort.postMessage(hot(200000, workerData));
}
