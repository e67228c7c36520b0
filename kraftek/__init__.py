"""Kraftek Socket Gateway: one connection point for a product's clients, and the router of events to its services.

::

                frames              messages                 events                    Redis
     client <----------> dialect <-----------> session <---------------> gateway <----------------> bus <-----> services
              websocket/          dialects/              session.py      gateway.py                 bus/
                                                            ^                |
                                                            +---- roster <---+      (who is here)

Imports point down only:

====== =========================================================== ===================================================
floor  rooms                                                       what they know
====== =========================================================== ===================================================
6      ``tap.py``, ``twisted/plugins/kraftek_gateway.py``          how it is started
5      ``daemon.py``                                               everything: the one place where all is wired
4      ``websocket/``, ``bus/``, ``http/``, ``listening.py``,      Autobahn, txredisapi, twisted.web, the sockets they
       ``systemd.py``                                              stand on: each one of them
3      ``gateway.py``, ``requests.py``, ``dispatch.py``,           clients, what they may do, and who is here
       ``broadcasts.py``, ``admission.py``, ``session.py``,
       ``roster.py``, ``expiries.py``, ``engineio.py``,
       ``intake.py``
2      ``dialects/``, ``registry.py``, ``router.py``,              grammars, names, access, rooms
       ``access/``, ``rooms.py``, ``leases.py``, ``origins.py``,
       ``addresses.py``
1      ``interfaces.py``, ``turn.py``, ``fastpath.py``,            the seams, in prose; what edges have in common
       ``trust.py``
0      ``messages.py``, ``errors.py``, ``config.py``,              the values that cross edges
       ``metrics.py``, ``names.py``, ``scripts.py``,
       ``consumers.py``
====== =========================================================== ===================================================

``demo/``, ``client/`` and ``service/`` stand beside the floors: a service and a page for newcomers; what authors of
clients import; what authors of services do.
"""

__version__ = "0.1.0"
