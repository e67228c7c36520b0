"""Who is connected, what they may do, and where their events go. Without sockets and without a Redis client; of this
package it imports ``contract`` alone.
"""
