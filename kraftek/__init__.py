"""Kraftek Socket Gateway: clients connect once, and it routes events between them and services over Redis.

The directory is the drawing::

                 frames           messages            events            Redis
    client <--------------> edge <--------> core <-----------> bus <----------> services
    (client/)                                                                  (service/)
                  daemon/ puts it together        contract/ is what all agree on

``contract/``
    Values, names, errors, seams, settings, counters, Lua loading. Everybody imports it; it imports nobody.
``edge/``
    HTTP and WebSocket, in and out: bytes outside, values inside.
``core/``
    Who is here, what they may do, where their events go. No socket, no Redis client.
``bus/``
    Redis.
``daemon/``
    How the gateway is started, configured, watched and operated; the demo. It alone imports everybody.
``client/``, ``service/``
    What authors of clients and of services import.

``edge``, ``core`` and ``bus`` never import each other, and no circle closes: the tests (``test_layers``) hold that.
``fastpath.py`` is what may be left out: it reaches past the public surface of Twisted, for speed.

From a client to a service:

1. ``edge/websocket/protocol.py`` takes messages out of frames (``edge/websocket/frames.py``)
2. ``edge/dialects/native.py`` or ``edge/dialects/socketio_client.py`` says what a message means
3. ``core/session.py`` holds it while access is checked
4. ``core/gateway.py`` looks up access and puts the sender's identity into the event
5. ``core/dispatch.py`` sends it to its service; ``core/requests.py`` keeps track of those that want an answer
6. ``bus/redis_bus.py`` publishes it

From a service to a client:

1. ``bus/connections.py`` receives a message from Redis
2. ``core/deliveries.py`` decodes its envelope and finds its recipients in ``core/roster.py``
3. ``edge/dialects/native.py`` or ``edge/dialects/socketio_client.py`` encodes it once for all of its kind
4. ``edge/websocket/outbox.py`` or ``edge/engineio/clients.py`` writes it, once for each client and reactor iteration
"""

__version__ = "0.1.0"
