"""Kraftek Socket Gateway: clients connect once, and it routes events between them and services over Redis.

The directory is the drawing::

                 frames           messages            events            Redis
    client <--------------> edge <--------> core <-----------> bus <----------> services
    (client/)                                                                  (service/)
                  daemon/ puts it together        contract/ is what all agree on

``contract/``
    Values, names, errors, interfaces, settings, counters, Lua loading. Every package imports it; it imports none.
``edge/``
    HTTP and WebSocket, in and out: bytes outside, values inside.
``core/``
    Who is connected, what they may do, and where their events go. Without sockets and Redis client.
``bus/``
    Redis.
``daemon/``
    How the gateway is started, configured, watched and operated; the demo. It alone imports all packages, and
    ``daemon/assembly/`` makes their parts, each in one place, of what all stand on and of other parts.
``client/``, ``service/``
    What authors of clients and of services import.

``edge``, ``core`` and ``bus`` never import each other, and there are no import cycles (``test_layers`` tests it).
``gateway.py`` is what a Twisted application imports that runs the gateway in its own process.
``fastpath.py`` is optional: it uses private parts of Twisted, for speed.

From a client to a service:

1. ``edge/websocket/protocol.py`` reads messages from frames (``edge/websocket/frames.py``); who sends many takes
   turns with others (``contract/turns.py``)
2. ``edge/dialects/native.py`` or ``edge/dialects/socketio_client.py`` decodes the message
3. ``core/session.py`` charges it to budgets (``core/budgets.py``), and holds it while access is checked
4. ``core/gateway.py`` looks up access and puts the sender's identity into the event
5. ``core/dispatch.py`` sends it to its service; ``core/requests.py`` keeps track of requests
6. ``bus/redis_bus.py`` publishes it

From a service to a client:

1. ``bus/connections.py`` receives a message from Redis
2. ``core/deliveries.py`` decodes its envelope and finds its recipients in ``core/roster.py``; in rooms with history
   ``core/following.py`` sees that none is missing, and ``core/resuming.py`` gives clients what they have missed
   (Socket.IO's ``core/recovering.py``; who is in a room ``core/presence.py`` tells them)
3. ``edge/dialects/native.py`` or ``edge/dialects/socketio_client.py`` encodes it once for all of its kind
4. ``edge/websocket/outbox.py`` or ``edge/engineio/clients.py`` writes it, once for each client and reactor iteration;
   it waits for those that do not read (``edge/backlogs.py``)

From one version to another, in the same process: ``daemon/upgrade.py`` gives what ``daemon/succession.py`` takes; each
package has its part of it in a ``moving.py``.
"""

__version__ = "0.1.0"
