/** fail_over_service.py with the kit for Node: `node fail_over_service.js REDIS_URL NAME TRANSPORT`. */

import { Service } from "kraftek-service";

const [url, name, transport] = process.argv.slice(2);
const note = (what) => (context) => context.redis("RPUSH", "told", `${what} ${context.userId} ${context.roomId}`);

await new Service(name, { transport, claimAfter: 1_000 })
  .on("say:back", (context, payload) => payload)
  .on("say:all", (context, payload) => context.broadcastToRoom(`${name}:said:all`, payload))
  .on("gateway:client:joined", note("joined"))
  .on("gateway:client:left", note("left"))
  .run(url);
