// A participant in Node.js: charges cards for sagas, and refunds them. What it keeps to is in ../../docs/wire.md.
"use strict";
const amqp = require("amqplib");

const { AMQP_URL = "amqp://guest:guest@localhost/", PREFIX = "" } = process.env; // PREFIX: the orchestrator's
const QUEUES = { "payment.steps": "execute.payment.charge", "payment.compensate": "compensate.payment.refund" };
const ARGUMENTS = {
  "x-queue-type": "quorum", "x-delivery-limit": 20, "x-overflow": "reject-publish", "x-dead-letter-exchange": "",
  "x-dead-letter-routing-key": `${PREFIX}saga.orchestrator`, "x-dead-letter-strategy": "at-least-once",
};

const HANDLERS = {
  "payment.charge": ({ id, input }) => {
    if (input.card === "card-declined")
      return { outcome: "failed", error: { code: "card_declined", message: "the bank said no", details: input } };
    console.log("charged", id);
    return { outcome: "succeeded", output: { transaction_id: `tx-${id}` } };
  },
  "payment.refund": ({ id }) => console.log("refunded", id) ?? { outcome: "succeeded" },
};

// What took effect, by idempotency key. In a service of yours: a table, written in the transaction of the work itself.
const effects = new Map();

function answer({ operation, action, work }) {
  const key = work.idempotency_key, charge = `${work.id}.execute`;
  if (effects.has(key)) return effects.get(key); // it came again: the same answer, and nothing is done
  const never = operation === "compensate" && effects.get(charge)?.outcome !== "succeeded"; // nothing is to be undone
  const reply = never ? { outcome: "succeeded" } : HANDLERS[action](work);
  if (never) effects.set(charge, { outcome: "failed", error: { code: "too_late", message: "the refund came first" } });
  if (reply.outcome === "succeeded") effects.set(key, reply); // what has failed may be tried again
  return reply;
}

async function main() {
  const connection = await amqp.connect(AMQP_URL);
  connection.on("close", (error) => process.exit(error ? 1 : 0)); // what was not acknowledged comes again
  const channel = await connection.createConfirmChannel();
  const returned = new Set(); // replies that no queue took: the broker says so before it confirms them
  channel.on("return", ({ properties }) => returned.add(properties.messageId));

  function handle(message) {
    let command;
    try { command = JSON.parse(message.content); } catch { /* it is no JSON */ }
    if (!command?.work || command.version > 1) return channel.nack(message, false, false); // an orchestrator gets it
    const { saga, step, attempt, operation: of, deadline } = command;
    if (deadline && Date.now() / 1000 >= deadline) return channel.ack(message); // it was given up
    const reply = { operation: "reply", saga, step, attempt, of, ...answer(command), version: 1 };
    const messageId = `${saga}.${step}.${of}.reply.${attempt}`;
    const properties = { mandatory: true, persistent: true, contentType: "application/json", messageId };
    channel.publish(`${PREFIX}sagas`, "reply", Buffer.from(JSON.stringify(reply)), properties, (error) => {
      if (!error && !returned.delete(messageId)) return channel.ack(message); // only now: the reply is safe
      setTimeout(() => channel.nack(message), 1000); // once more, later
    });
  }

  await channel.assertExchange(`${PREFIX}sagas`, "topic", { durable: true });
  await channel.prefetch(20);
  const consumers = [];
  for (const [name, key] of Object.entries(QUEUES)) {
    const { queue } = await channel.assertQueue(PREFIX + name, { durable: true, arguments: ARGUMENTS });
    await channel.bindQueue(queue, `${PREFIX}sagas`, key);
    consumers.push((await channel.consume(queue, handle)).consumerTag);
  }
  process.once("SIGTERM", async () => {
    await Promise.all(consumers.map((tag) => channel.cancel(tag)));
    await channel.waitForConfirms();
    await connection.close();
  });
  console.log("ready");
}

main().catch((error) => { console.error(error); process.exit(1); });
