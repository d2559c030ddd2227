// MQTT.js, driven line by line: a JSON command on stdin, JSON events on stdout. See clients.rs for both.
'use strict';

const fs = require('fs');
const mqtt = require('mqtt');
const readline = require('readline');

const clients = {};

function emit(client, event, fields = {}) {
  process.stdout.write(JSON.stringify({ client, event, ...fields }) + '\n');
}

function connect(name, command) {
  const will = command.will && { ...command.will, payload: Buffer.from(command.will.payload, 'hex') };
  const client = mqtt.connect(`${command.scheme}://${command.host}:${command.port}/mqtt`, {
    ...(command.ca ? { ca: fs.readFileSync(command.ca) } : {}),
    clientId: command.id,
    clean: command.clean,
    keepalive: command.keep_alive,
    protocolId: command.level === 3 ? 'MQIsdp' : 'MQTT',
    protocolVersion: command.level,
    reconnectPeriod: 0,
    resubscribe: false,
    ...(will ? { will } : {}),
    ...(command.user ? { username: command.user[0], password: command.user[1] } : {}),
  });
  clients[name] = client;
  client.on('connect', (connack) => emit(name, 'connected', { session_present: !!connack.sessionPresent }));
  client.on('message', (topic, payload, packet) =>
    emit(name, 'message', {
      topic,
      payload: payload.subarray(0, command.clip).toString('hex'),
      size: payload.length,
      qos: packet.qos,
      retain: packet.retain,
      dup: packet.dup,
    }));
  client.on('close', () => emit(name, 'closed'));
  client.on('error', (error) => {
    if (error.code >= 1 && error.code <= 5) {
      emit(name, 'refused', { reason: error.message });
    } else if (error.syscall !== 'read' && error.syscall !== 'write') {
      // A connection that breaks is reported by 'close'.
      emit(name, 'error', { text: String(error) });
    }
  });
}

function send(name, command, payloads, event) {
  const sent = payloads.map((payload) =>
    clients[name].publishAsync(command.topic, payload, { qos: command.qos, retain: command.retain }));
  Promise.all(sent).then(() => emit(name, event), (error) => emit(name, 'error', { text: String(error) }));
}

function burst(command) {
  const padding = '.'.repeat(command.padding);
  return Array.from({ length: command.count }, (_, n) => Buffer.from(`${command.prefix}${n} ${padding}`));
}

const doing = {
  connect,
  subscribe: (name, command) => {
    const filters = Object.fromEntries(command.filters.map(([filter, qos]) => [filter, { qos }]));
    clients[name].subscribe(filters, (error, granted, packet) =>
      error
        ? emit(name, 'error', { text: String(error) })
        : emit(name, 'subscribed', { granted: packet.granted }));
  },
  unsubscribe: (name, command) => clients[name].unsubscribe(command.filters, () => emit(name, 'unsubscribed')),
  publish: (name, command) => send(name, command, [Buffer.from(command.payload, 'hex')], 'published'),
  burst: (name, command) => send(name, command, burst(command), 'burst'),
  payloads: (name, command) => send(name, command, command.payloads.map((p) => Buffer.from(p, 'hex')), 'burst'),
  disconnect: (name) => clients[name].end(),
};

readline.createInterface({ input: process.stdin }).on('line', (line) => {
  const command = JSON.parse(line);
  try {
    doing[command.do](command.client, command);
  } catch (error) {
    emit(command.client, 'error', { text: String(error) });
  }
}).on('close', () => process.exit(0));
