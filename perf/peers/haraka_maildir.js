'use strict';
// Haraka plugin: takes mail for perf.example and stores it durably in a Maildir before it answers.
// Write to tmp/, fsync, rename to new/: what Dovecot and Postfix do, too.

const fs = require('node:fs');
const path = require('node:path');

const MAIL = process.env.PERF_MAIL;
let count = 0;

// A method up to Haraka 3.1, a property since.
function mailbox({ address }, owner) {
    return path.join(MAIL, typeof address === 'function' ? address.call(owner) : address);
}

exports.register = function () {
    for (const user of fs.readFileSync(process.env.PERF_USERS, 'utf8').split('\n').filter(Boolean))
        for (const part of ['tmp', 'new', 'cur'])
            fs.mkdirSync(path.join(MAIL, user, part), { recursive: true });
};

exports.hook_rcpt = function (next, connection, params) {
    fs.access(mailbox(params[0], params[0]), (error) => (error ? next(DENY) : next(OK)));
};

exports.hook_queue = function (next, connection) {
    const { message_stream: stream, rcpt_to: recipients } = connection.transaction;
    const name = `${Date.now()}.${process.pid}_${count++}.perf`;
    const box = mailbox(recipients[0], recipients[0]);
    const temporary = path.join(box, 'tmp', name);
    const file = fs.createWriteStream(temporary, { flush: true });
    file.on('error', () => next(DENYSOFT));
    file.on('close', () =>
        fs.rename(temporary, path.join(box, 'new', name), (error) =>
            error ? next(DENYSOFT) : next(OK),
        ),
    );
    stream.pipe(file);
};
