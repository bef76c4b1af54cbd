// SPDX-License-Identifier: LGPL-2.1-or-later
// A replica of a node service: tables, templates, some modules. A line of input at a time:
// "request" renders something, "check" compares all data with the beginning; both answer
// "right" or "wrong". "ready" when it is.
'use strict';
const crypto = require('crypto');
const modules = ['http', 'https', 'fs', 'zlib', 'stream', 'url', 'dns', 'readline'].map(require);

let state = 12345;
function random(below) {
	state = (Math.imul(state, 1103515245) + 12345) >>> 0;
	return (state >>> 8) % below;
}

const number = process.argv[2];
const rows = new Map();
for (let i = 0; i < 20000; i++)
	rows.set(`row-${i}`, { id: i, price: random(100000) / 100, text: 'x'.repeat(random(80)),
		tags: [0, 1, 2, 3].map(() => `tag-${random(500)}`) });
const templates = [];
for (let i = 0; i < 200; i++) {
	const t = Buffer.alloc(65536);
	for (let k = 0; k < t.length; k += 4)
		t.writeUInt32LE(random(1 << 24), k);
	templates.push(t);
}
const own = crypto.createHash('sha512').update(`own ${number}`).digest();
const mine = Buffer.alloc(2 << 20, own);

function digest() {
	const h = crypto.createHash('sha1');
	for (const [key, row] of rows)
		h.update(`${key} ${row.id} ${row.price} ${row.text} ${row.tags}`);
	for (const t of templates)
		h.update(t);
	return h.update(mine).digest('hex');
}

const first = digest();
let turn = 0;
function request() {
	const id = ++turn * 7919 % rows.size;
	return JSON.parse(JSON.stringify(rows.get(`row-${id}`))).id === id;
}

modules[7].createInterface({ input: process.stdin }).on('line', (word) => {
	const right = word === 'check' ? digest() === first : request();
	process.stdout.write(right ? 'right\n' : 'wrong\n');
}).on('close', () => process.exit(0));
if (global.gc)
	global.gc();
process.stdout.write('ready\n');
