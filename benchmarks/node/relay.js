// The course of `benchmarks.relays` on Node's amqplib: what the broker can do.
// node relay.js URL HOPS IN_FLIGHT
"use strict";

const crypto = require("node:crypto");
const amqp = require("amqplib");

const BODY_LENGTH = 400;
const LINGER = 200; // milliseconds: see course.py

async function main(url, hops, inFlight) {
  const connection = await amqp.connect(url);
  const consuming = await connection.createChannel();
  const publishing = await connection.createConfirmChannel();
  const queue = `bench.${crypto.randomUUID()}`;
  await consuming.assertQueue(queue, { durable: true, arguments: { "x-queue-type": "quorum" } });
  await consuming.prefetch(2 * inFlight);

  const text = { saga: "01J" + "0".repeat(23), step: 1, revision: 2, payload: { pad: "" } };
  text.payload.pad = "x".repeat(BODY_LENGTH - JSON.stringify(text).length);
  const body = Buffer.from(JSON.stringify(text));

  const travelling = new Set();
  const done = new Map(); // deliveries that can be acknowledged, by tag
  const warmUp = Math.floor(hops / 10);
  let ids = 0, begun = 0, confirmed = 0, settled = 0, acknowledged = 0, flushing = false;
  let start, end, finish;
  const finished = new Promise((resolve) => { finish = resolve; });

  function publish(whenConfirmed) {
    const messageId = String(++ids).padStart(26, "0");
    travelling.add(messageId);
    const properties = { persistent: true, mandatory: true, contentType: "application/json", type: "relay", messageId };
    publishing.publish("", queue, body, properties, (error) => {
      if (error) throw error;
      settled++;
      whenConfirmed();
    });
  }

  function flush() { // once per turn of the loop, for everything up to a tag
    flushing = false;
    let last;
    for (let message; (message = done.get(acknowledged + 1)); last = message) done.delete(++acknowledged);
    if (last) consuming.ack(last, true);
    if (acknowledged === hops + inFlight) finish();
  }

  function acknowledge(message) {
    done.set(message.fields.deliveryTag, message);
    if (!flushing) {
      flushing = true;
      setImmediate(flush);
    }
  }

  const { consumerTag } = await consuming.consume(queue, (message) => {
    if (!travelling.delete(message.properties.messageId)) throw new Error("a message came twice, or out of nowhere");
    if (message.content.length !== BODY_LENGTH) throw new Error(`a message has ${message.content.length} bytes`);
    if (begun === hops) return acknowledge(message);
    begun++;
    publish(() => {
      confirmed++;
      if (confirmed === warmUp) start = [process.hrtime.bigint(), process.cpuUsage()];
      if (confirmed === hops) end = [process.hrtime.bigint(), process.cpuUsage(start[1])];
      acknowledge(message);
    });
  });
  for (let seed = 0; seed < inFlight; seed++) publish(() => {});
  await finished;
  await new Promise((resolve) => setTimeout(resolve, LINGER));
  if (travelling.size || confirmed !== hops || settled !== hops + inFlight) throw new Error("messages are missing");
  await consuming.cancel(consumerTag);
  await consuming.deleteQueue(queue);
  await connection.close();
  const measured = hops - warmUp;
  const seconds = Number(end[0] - start[0]) / 1e9;
  console.log(JSON.stringify({ rate: measured / seconds, cpu: (end[1].user + end[1].system) / measured }));
}

main(process.argv[2], Number(process.argv[3]), Number(process.argv[4])).catch((error) => {
  console.error(error);
  process.exit(1);
});
